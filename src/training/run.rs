use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    TrainConfig, TrainExample, TrainProgress,
    adamw::{self, AdamW},
    checkpoint::{self, State},
    data::{self, Sample},
    lora::{self, Learned},
    progress::TrainSender,
    step::Step,
};
use crate::{
    AdapterFile, Error, Result,
    decoder::Trained,
    engine::{Access, Adapters},
    text::TextProcessor,
};

/// One training, from its first step to its last.
pub struct Run {
    pub access: Access,
    pub text: Arc<TextProcessor>,
    pub adapters: Arc<Adapters>,
    pub learned: Arc<Learned>,
    pub config: TrainConfig,
    pub sender: TrainSender,
}

/// What changes from step to step.
struct Progress {
    file: AdapterFile,
    adamw: AdamW,
    state: State,
    /// The state at the last checkpoint.
    kept: State,
}

impl Run {
    /// Lets go of the model.
    pub fn end(self) -> TrainSender {
        self.sender
    }

    pub fn all(&self, examples: &[TrainExample]) -> Result<()> {
        let samples = examples.iter().map(|example| self.sample(example)).collect::<Result<Vec<_>>>()?;
        let mut progress = self.begin(&samples)?;
        let (learned, evaluated) = data::split(samples, &self.config);
        if learned.is_empty() {
            return Err(Error::config("examples", "there are none"));
        }
        if let Some(field) = self.config.evaluation().filter(|_| evaluated.is_empty()) {
            return Err(Error::config(field, "no example is set aside to be asked for"));
        }
        let ended = self.steps(&learned, &evaluated, &mut progress);
        // However it ended, requests use what `Adapter::save` writes; a model that closes has none.
        if progress.state.step > 0 && !matches!(ended, Err(Error::Closed)) {
            self.publish(&progress)?;
        }
        if progress.state != progress.kept {
            self.keep(&mut progress)?;
        }
        match ended {
            // Nobody is there to hear of it.
            Err(Error::Cancelled) => Ok(()),
            ended => ended,
        }
    }

    fn sample(&self, example: &TrainExample) -> Result<Sample> {
        // There may be very many.
        self.access.check_open()?;
        if self.sender.is_closed() {
            return Err(Error::Cancelled);
        }
        let sample = Sample::new(example, &self.text, &self.access.network, &self.config)?;
        match sample.targets() {
            0 => Err(Error::config("examples", format!("nothing can be learned from {example:?}"))),
            _ => Ok(sample),
        }
    }

    /// From the last checkpoint on, or from the adapter as it is.
    fn begin(&self, samples: &[Sample]) -> Result<Progress> {
        let mut file = self.learned.get();
        let mut adamw = AdamW::default();
        let fingerprint = checkpoint::fingerprint(&self.config, self.learned.origin, samples);
        let mut state = State { fingerprint, ..State::default() };
        if let Some(dir) = &self.config.checkpoint_dir {
            checkpoint::read(dir, &mut state, &mut file, &mut adamw)?;
            self.learned.set(&file);
        }
        let kept = state.clone();
        Ok(Progress { file, adamw, state, kept })
    }

    fn steps(&self, learned: &[Sample], evaluated: &[Sample], progress: &mut Progress) -> Result<()> {
        let config = &self.config;
        let per_epoch = learned.len().div_ceil(config.step_examples());
        let total = config.max_steps.unwrap_or(usize::MAX).min(per_epoch.saturating_mul(config.epochs));
        let eval_every = config.eval_every.unwrap_or(per_epoch);
        let is_due =
            |state: &State| !evaluated.is_empty() && (state.step.is_multiple_of(eval_every) || state.step == total);
        // What ended training before may have come in between.
        if progress.state.step > progress.state.evaluated && is_due(&progress.state) {
            self.evaluate(evaluated, progress)?;
        }
        while progress.state.step < total && !progress.state.is_enough(config.patience) {
            let step = progress.state.step;
            let (epoch, within) = (step / per_epoch, step % per_epoch);
            let order = data::steps(learned.len(), epoch, config);
            let samples: Vec<&Sample> = order[within].iter().map(|index| &learned[*index]).collect();
            let mut report = self.step(&samples, config.rate(step, total), progress)?;
            (report.epoch, report.total_steps) = (epoch, total);
            if is_due(&progress.state) {
                report.eval_loss = Some(self.evaluate(evaluated, progress)?);
            }
            if progress.state.step.is_multiple_of(config.checkpoint_every) {
                self.keep(progress)?;
            }
            self.sender.step(report, self.access.closing())?;
        }
        Ok(())
    }

    /// Learns from some samples.
    fn step(&self, samples: &[&Sample], rate: f32, progress: &mut Progress) -> Result<TrainProgress> {
        let begun = Instant::now();
        let trained = Trained::new(self.access.network.sites(), &progress.file)?;
        let step = self.with(&trained);
        let mut parameters = lora::parameters(&mut progress.file);
        let mut gradients: Vec<Vec<f32>> = parameters.iter().map(|values| vec![0.0; values.len()]).collect();
        let targets: usize = samples.iter().map(|sample| sample.targets()).sum();
        let mut sum = 0.0;
        for batch in samples.chunks(self.config.batch_size) {
            sum += step.learn(batch, 1.0 / targets as f64, &mut gradients)?;
        }
        let loss = (sum / targets as f64) as f32;
        let grad_norm = adamw::clip(&mut gradients, self.config.max_grad_norm);
        if !(loss.is_finite() && grad_norm.is_finite()) {
            let reason = format!("{rate} led to a loss of {loss} and a gradient of length {grad_norm}");
            return Err(Error::config("learning_rate", reason));
        }
        progress.adamw.step(&mut parameters, &gradients, rate, self.config.weight_decay);
        progress.state.step += 1;
        self.learned.set(&progress.file);
        let tokens = samples.iter().map(|sample| sample.tokens.len()).sum();
        Ok(TrainProgress {
            step: progress.state.step,
            loss,
            learning_rate: rate,
            grad_norm,
            tokens,
            tokens_per_sec: tokens as f32 / begun.elapsed().as_secs_f32(),
            ..TrainProgress::default()
        })
    }

    /// The mean loss of samples that are not learned from. Requests may use what has been learned from then on.
    fn evaluate(&self, samples: &[Sample], progress: &mut Progress) -> Result<f32> {
        let trained = Trained::new(self.access.network.sites(), &progress.file)?;
        let step = self.with(&trained);
        let samples: Vec<&Sample> = samples.iter().collect();
        let sums = samples.chunks(self.config.batch_size).map(|batch| step.loss(batch));
        let sum: f64 = sums.sum::<Result<f64>>()?;
        let loss = (sum / samples.iter().map(|sample| sample.targets()).sum::<usize>() as f64) as f32;
        progress.state.note(loss);
        self.publish(progress)?;
        Ok(loss)
    }

    fn with<'a>(&'a self, trained: &'a Trained) -> Step<'a> {
        Step {
            access: &self.access,
            trained,
            is_wanted: Box::new(|| !self.sender.is_closed()),
            checkpoint_activations: self.config.checkpoint_activations,
        }
    }

    /// Lets requests use what has been learned.
    fn publish(&self, progress: &Progress) -> Result<()> {
        let adapter = self.access.network.sites().resolve(&progress.file)?;
        match self.learned.is_replaced.load(Ordering::Acquire) {
            true => Ok(()),
            false => self.adapters.set_default(adapter),
        }
    }

    fn keep(&self, progress: &mut Progress) -> Result<()> {
        if let Some(dir) = &self.config.checkpoint_dir {
            checkpoint::write(dir, &progress.state, &mut progress.file, &progress.adamw)?;
        }
        progress.kept = progress.state.clone();
        Ok(())
    }
}
