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
}

/// The steps of a training as they are taken: a `Stream<Item = TrainProgress>`.
///
/// The stream is `Send + 'static`. Dropping it ends the training soon, with what the steps before have taught, and with a
/// checkpoint if there is a place for them. A reader that stops reading pauses it.
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
    /// As [`TrainableModel::train`](crate::TrainableModel::train), and [`Error::Closed`] if the model was closed meanwhile.
    pub fn result(&self) -> Result<()> {
        self.end.clone().unwrap_or(Ok(()))
    }
}

impl Stream for TrainStream {
    type Item = TrainProgress;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TrainProgress>> {
        let step = std::task::ready!(self.steps.poll_recv(context));
        if step.is_none() && self.end.is_none() {
            // The sender has said why before it left.
            let died = || Err(Error::internal("training ended without a word"));
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

    pub fn end(self, result: Result<()>) {
        self.ended.send(result).ok();
    }
}
