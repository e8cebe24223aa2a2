//! Calls with many prompts.

use std::time::Instant;

use futures::{
    StreamExt, TryFutureExt,
    future::{join_all, try_join_all},
};
use tokio::sync::oneshot;

use super::{Executor, Frontend, Task, TaskKind, frontend::Call};
use crate::{
    BatchResult, ClassifyResult, Error, GenerateConfig, GenerateMetrics, Result, Token, TokenStream, text::Prompt,
};

/// Calls with many prompts: a request for each, all of which run at the same time.
impl<E: Executor> Frontend<E> {
    /// Predicts one token after each prompt.
    pub async fn classify(&self, prompts: &[&str], config: &GenerateConfig) -> Result<Vec<ClassifyResult>> {
        self.all_or_none(prompts, config, TaskKind::Classify, |call| self.classify_one(call)).await
    }

    /// Finds how likely the tokens of each prompt are.
    pub async fn score(&self, prompts: &[&str], config: &GenerateConfig) -> Result<Vec<Vec<Token>>> {
        self.all_or_none(prompts, config, TaskKind::Score, |call| self.score_one(call)).await
    }

    /// Continues each prompt; the failure of one is its own.
    pub async fn batch_generate(&self, prompts: &[&str], config: &GenerateConfig) -> Result<Vec<BatchResult>> {
        let started = Instant::now();
        let calls = self.calls(prompts, config, TaskKind::Generate).inspect_err(|error| {
            self.record_many(started, &[], Some(error.clone()));
        })?;
        let parts = join_all(calls.map(|call| self.generate_one(call))).await;
        let (results, metrics): (Vec<BatchResult>, Vec<_>) = parts.into_iter().unzip();
        self.record_many(started, &metrics, results.iter().find_map(|result| result.err.clone()));
        Ok(results)
    }

    /// The results of all prompts, or the error of the first prompt that fails, which says which one it was.
    async fn all_or_none<T, F>(
        &self,
        prompts: &[&str],
        config: &GenerateConfig,
        kind: TaskKind,
        one: impl Fn(Call<E::Adapter>) -> F,
    ) -> Result<Vec<T>>
    where
        F: Future<Output = Result<(T, GenerateMetrics)>>,
    {
        let started = Instant::now();
        let outcome = match self.calls(prompts, config, kind) {
            Ok(calls) => {
                let parts = calls.enumerate();
                try_join_all(parts.map(|(index, call)| one(call).map_err(move |error| error.at_prompt(index)))).await
            }
            Err(error) => Err(error),
        };
        let parts = outcome.inspect_err(|error| self.record_many(started, &[], Some(error.clone())))?;
        let (results, metrics): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        self.record_many(started, &metrics, None);
        Ok(results)
    }

    /// A call for each prompt, if the config is one that the model can honor.
    fn calls(
        &self,
        prompts: &[&str],
        config: &GenerateConfig,
        kind: TaskKind,
    ) -> Result<impl Iterator<Item = Call<E::Adapter>>> {
        let adapter = self.check(config, kind)?;
        let call = move |(index, prompt): (usize, &&str)| {
            Call::new(Prompt::Text((*prompt).to_owned()), config.for_prompt(index), adapter.clone())
        };
        Ok(prompts.iter().enumerate().map(call))
    }

    async fn classify_one(&self, call: Call<E::Adapter>) -> Result<(ClassifyResult, GenerateMetrics)> {
        let (sender, logits) = call.config.return_logits.then(oneshot::channel).unzip();
        let stream = self.start_queued(call, Task::Classify { logits: sender }).await;
        let (tokens, metrics) = drain(stream).await;
        let token = tokens?.into_iter().next().ok_or_else(|| Error::internal("a prediction gave no token"))?;
        let logits = match logits {
            Some(logits) => Some(logits.await.map_err(|_| Error::internal("a prediction gave no logits"))?),
            None => None,
        };
        Ok((ClassifyResult { token, logits }, metrics))
    }

    async fn score_one(&self, call: Call<E::Adapter>) -> Result<(Vec<Token>, GenerateMetrics)> {
        let (tokens, metrics) = drain(self.start_queued(call, Task::Score).await).await;
        Ok((tokens?, metrics))
    }

    async fn generate_one(&self, call: Call<E::Adapter>) -> (BatchResult, GenerateMetrics) {
        let mut stream = self.start_queued(call, Task::Generate).await;
        let tokens = stream.by_ref().collect().await;
        (BatchResult { tokens, err: stream.err().cloned() }, stream.metrics())
    }

    fn record_many(&self, started: Instant, parts: &[GenerateMetrics], error: Option<Error>) {
        self.record(GenerateMetrics::of_many(parts, started.elapsed()), error);
    }
}

/// All tokens of a stream, or its error, and its metrics.
async fn drain(mut stream: TokenStream) -> (Result<Vec<Token>>, GenerateMetrics) {
    let tokens = stream.by_ref().collect().await;
    (stream.err().cloned().map_or(Ok(tokens), Err), stream.metrics())
}
