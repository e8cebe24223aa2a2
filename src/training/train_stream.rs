//! The stream of progress, and the sender behind it.

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
    /// The mean loss of this step's targets, in nats per token.
    pub loss: f32,
    /// The mean loss of the held-out examples, if they were evaluated after this step.
    pub eval_loss: Option<f32>,
    /// The learning rate of this step.
    pub learning_rate: f32,
    /// The global gradient norm before clipping.
    pub grad_norm: f32,
    /// Tokens of the step's examples.
    pub tokens: usize,
    /// Tokens per second of this step.
    pub tokens_per_sec: f32,
    /// Examples of the training that were skipped ([`OnBadExample`](crate::OnBadExample)).
    pub skipped_examples: usize,
    /// Examples of the training that were truncated to [`max_tokens`](crate::TrainConfig::max_tokens).
    pub cut_examples: usize,
}

/// The progress of a training: a `Stream` of [`TrainProgress`], one for each step.
///
/// The stream is `Send + 'static`. Dropping it ends the training within one layer of the current step; the adapter is
/// then the one after the step before, with a checkpoint if there is a folder for it. [`stop`](Self::stop) also waits
/// for that end. A reader that stops reading pauses the training.
#[derive(Debug)]
#[must_use = "a stream that is dropped ends its training"]
pub struct TrainStream {
    steps: mpsc::Receiver<TrainProgress>,
    ended: oneshot::Receiver<Result<()>>,
    end: Option<Result<()>>,
}

/// The training's end of a [`TrainStream`].
pub(crate) struct TrainSender {
    steps: mpsc::Sender<TrainProgress>,
    ended: oneshot::Sender<Result<()>>,
}

/// A weak view of a training: whether it runs, and whether its stream is read.
pub(crate) struct TrainWatch(mpsc::WeakSender<TrainProgress>);

impl TrainWatch {
    /// Whether the training has not ended and its stream was not dropped.
    pub fn is_wanted(&self) -> bool {
        self.0.upgrade().is_some_and(|steps| !steps.is_closed())
    }
}

/// Steps that a reader may lag behind.
const BUFFER: usize = 16;

impl TrainStream {
    pub(crate) fn channel() -> (TrainSender, Self) {
        let (steps_sender, steps) = mpsc::channel(BUFFER);
        let (ended_sender, ended) = oneshot::channel();
        (TrainSender { steps: steps_sender, ended: ended_sender }, Self { steps, ended, end: None })
    }

    /// A stream that has ended with an error.
    pub(crate) fn failed(error: Error) -> Self {
        let (sender, stream) = Self::channel();
        sender.end(Err(error));
        stream
    }

    /// The error that ended the training, once the stream has ended.
    pub fn err(&self) -> Option<&Error> {
        self.end.as_ref().and_then(|end| end.as_ref().err())
    }

    /// The result of the training, for `?`; `Ok` as long as it runs.
    ///
    /// # Errors
    /// The errors of [`TrainableModel::train`](crate::TrainableModel::train), and [`Error::Closed`] if the model was
    /// closed.
    pub fn result(&self) -> Result<()> {
        self.end.clone().unwrap_or(Ok(()))
    }

    /// Ends the training and waits for its end: about the time of one layer, and of a check of the adapter. Requests
    /// and [`Adapter::save`](crate::Adapter::save) then use the adapter after the last whole step.
    ///
    /// # Errors
    /// The error of a training that had failed by then, or whose last step diverged. Being stopped is no error.
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
    Err(Error::internal("the training thread died"))
}

impl Stream for TrainStream {
    type Item = TrainProgress;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TrainProgress>> {
        let step = std::task::ready!(self.steps.poll_recv(context));
        if step.is_none() && self.end.is_none() {
            // The result is sent before the sender is dropped.
            self.end = Some(self.ended.try_recv().unwrap_or_else(|_| died()));
        }
        Poll::Ready(step)
    }
}

impl TrainSender {
    /// Sends the progress of a step, once there is room in the channel.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the stream was dropped, [`Error::Closed`] if `closing` completes first.
    pub fn step(&self, progress: TrainProgress, closing: impl Future<Output = ()>) -> Result<()> {
        block_on(async {
            tokio::select! {
                biased;
                sent = self.steps.send(progress) => sent.map_err(|_| Error::Cancelled),
                () = closing => Err(Error::Closed),
            }
        })
    }

    /// Whether the stream was dropped.
    pub fn is_closed(&self) -> bool {
        self.steps.is_closed()
    }

    /// Waits until the stream is dropped.
    pub async fn closed(&self) {
        self.steps.closed().await;
    }

    /// A view that does not keep the stream open.
    pub fn watch(&self) -> TrainWatch {
        TrainWatch(self.steps.downgrade())
    }

    /// Sends the result of the training.
    pub fn end(self, result: Result<()>) {
        self.ended.send(result).ok();
    }
}
