use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, executor::block_on};
use tokio::sync::{mpsc, oneshot};

use crate::{Error, Result};

/// One step of training.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct TrainProgress {
    /// Steps taken, this one among them.
    pub step: usize,
    /// Steps there will be.
    pub total_steps: usize,
    /// The epoch, from 0 on.
    pub epoch: usize,
    /// The mean loss of the tokens this step learned from, in nats.
    pub loss: f32,
    /// The mean loss of the examples set aside, if they were asked after this step.
    pub eval_loss: Option<f32>,
    /// The learning rate of this step.
    pub learning_rate: f32,
    /// How long the gradient was before it was clipped.
    pub grad_norm: f32,
    /// Tokens of the step's examples.
    pub tokens: usize,
    /// These per second.
    pub tokens_per_sec: f32,
    /// Examples of the training that were left out ([`OnBadExample`](crate::OnBadExample)).
    pub skipped_examples: usize,
    /// Examples of the training of which the first or last tokens were left out, for there were more than
    /// [`max_tokens`](crate::TrainConfig::max_tokens).
    pub cut_examples: usize,
}

/// The steps of a training as they are taken: a `Stream<Item = TrainProgress>`.
///
/// The stream is `Send + 'static`. Dropping it ends the training soon, with what the steps before have taught, and with
/// a checkpoint if there is a place for them; [`stop`](Self::stop) does so and waits for it. A reader that stops
/// reading pauses the training.
#[derive(Debug)]
#[must_use = "a stream that is dropped ends its training"]
pub struct TrainStream {
    steps: mpsc::Receiver<TrainProgress>,
    ended: oneshot::Receiver<Result<()>>,
    end: Option<Result<()>>,
}

/// The other end of a [`TrainStream`].
pub(crate) struct TrainSender {
    steps: mpsc::Sender<TrainProgress>,
    ended: oneshot::Sender<Result<()>>,
}

/// Whether a training goes on.
pub(crate) struct TrainWatch(mpsc::WeakSender<TrainProgress>);

impl TrainWatch {
    /// Whether the training has not ended and somebody listens.
    pub fn is_wanted(&self) -> bool {
        self.0.upgrade().is_some_and(|steps| !steps.is_closed())
    }
}

/// Steps that a reader may be behind.
const BUFFER: usize = 16;

impl TrainStream {
    pub(crate) fn channel() -> (TrainSender, Self) {
        let (steps_sender, steps) = mpsc::channel(BUFFER);
        let (ended_sender, ended) = oneshot::channel();
        (TrainSender { steps: steps_sender, ended: ended_sender }, Self { steps, ended, end: None })
    }

    /// A stream that has ended.
    pub(crate) fn failed(error: Error) -> Self {
        let (sender, stream) = Self::channel();
        sender.end(Err(error));
        stream
    }

    /// Why training ended early, if it did, once the stream has ended.
    pub fn err(&self) -> Option<&Error> {
        self.end.as_ref().and_then(|end| end.as_ref().err())
    }

    /// How training ended, for `?`; it is fine as long as it has not.
    ///
    /// # Errors
    /// As [`TrainableModel::train`](crate::TrainableModel::train), and [`Error::Closed`] if the model was closed
    /// meanwhile.
    pub fn result(&self) -> Result<()> {
        self.end.clone().unwrap_or(Ok(()))
    }

    /// Ends the training and waits until it has ended, which takes about as long as one layer of a step and a look at
    /// what has been learned. Requests then use what the steps so far have taught, and
    /// [`Adapter::save`](crate::Adapter::save) writes that.
    ///
    /// # Errors
    /// Those of a training that had failed by then, or whose last step diverged. That it was stopped is none.
    ///
    /// # Cancel safety
    /// The training ends even if the future is dropped.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn run(model: Box<dyn tokenflow::TrainableModel>) -> tokenflow::Result<()> {
    /// use futures::StreamExt;
    /// use tokenflow::{TrainConfig, TrainExample};
    ///
    /// let examples = vec![TrainExample::text("The tide turns twice a day.")];
    /// let mut training = model.train(examples, TrainConfig::new().epochs(99));
    /// while let Some(progress) = training.next().await {
    ///     if progress.loss < 0.1 {
    ///         training.stop().await?;
    ///         break;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn stop(mut self) -> Result<()> {
        self.steps.close();
        match self.end.take() {
            Some(end) => end,
            None => (&mut self.ended).await.unwrap_or_else(|_| died()),
        }
    }
}

fn died() -> Result<()> {
    Err(Error::internal("training ended without a word"))
}

impl Stream for TrainStream {
    type Item = TrainProgress;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TrainProgress>> {
        let step = std::task::ready!(self.steps.poll_recv(context));
        if step.is_none() && self.end.is_none() {
            // The sender has said why before it left.
            self.end = Some(self.ended.try_recv().unwrap_or_else(|_| died()));
        }
        Poll::Ready(step)
    }
}

impl TrainSender {
    /// Reports a step, when there is room.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if nobody listens, [`Error::Closed`] if `closing` ends before there is room.
    pub fn step(&self, progress: TrainProgress, closing: impl Future<Output = ()>) -> Result<()> {
        block_on(async {
            tokio::select! {
                biased;
                sent = self.steps.send(progress) => sent.map_err(|_| Error::Cancelled),
                () = closing => Err(Error::Closed),
            }
        })
    }

    /// Whether nobody listens any more.
    pub fn is_closed(&self) -> bool {
        self.steps.is_closed()
    }

    /// Waits until nobody listens any more.
    pub async fn closed(&self) {
        self.steps.closed().await;
    }

    /// Tells whether somebody listens without keeping the training's end from being heard.
    pub fn watch(&self) -> TrainWatch {
        TrainWatch(self.steps.downgrade())
    }

    pub fn end(self, result: Result<()>) {
        self.ended.send(result).ok();
    }
}
