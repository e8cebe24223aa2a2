use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicBool},
    thread,
};

use async_trait::async_trait;

use super::{Adapter, LoraConfig, adapter_init, fnv::Fnv1a};
use crate::{
    AdapterFile, Error, LoraTensors, Result, blocking,
    decoder::{self, LoraTargets},
    engine::ModelLease,
};

/// An adapter between the steps of its training.
pub struct TrainedAdapter {
    /// What it began with and has become. A thread finds that out: the lengths of all rows of the weights may be
    /// needed.
    begun: OnceLock<Result<InitializedAdapter>>,
    total_params: usize,
    /// Whether requests are to use one that was applied later.
    pub is_replaced: AtomicBool,
}

struct InitializedAdapter {
    /// A hash of what it began with.
    origin: u64,
    file: Mutex<AdapterFile>,
}

impl TrainedAdapter {
    /// A new adapter, which is there soon.
    pub fn begin(lease: ModelLease, config: &LoraConfig) -> Result<Arc<Self>> {
        config.validate()?;
        let plan = adapter_init::plan(lease.network.targets(), config)?;
        let total_params = plan.iter().map(|planned| planned.total_params(config)).sum();
        let learned = Arc::new(Self { begun: OnceLock::new(), total_params, is_replaced: AtomicBool::new(false) });
        let (of_thread, config) = (learned.clone(), config.clone());
        let work = move || {
            let begin = || {
                let file = adapter_init::random_adapter(&lease, &plan, &config)?;
                InitializedAdapter::new(lease.network.targets(), file)
            };
            let begun = catch_unwind(AssertUnwindSafe(begin));
            let begun = begun.unwrap_or_else(|panic| Err(Error::panicked("a new adapter", panic.as_ref())));
            // The model may close from now on.
            drop(lease);
            let _ = of_thread.begun.set(begun);
        };
        let thread = thread::Builder::new().name("tokenflow adapter".into()).spawn(work);
        thread.map_err(|error| Error::internal(format!("a thread could not be started: {error}")))?;
        Ok(learned)
    }

    /// An adapter that goes on as a directory has it, also for requests.
    pub fn read(targets: &LoraTargets, path: &Path, config: &LoraConfig) -> Result<(Arc<Self>, decoder::LoraAdapter)> {
        config.validate()?;
        let mut file = AdapterFile::read(path)?;
        file.bfloat16 = config.bfloat16;
        let adapter = targets.resolve(&file)?;
        let total_params = parameters(&mut file).iter().map(|values| values.len()).sum();
        let begun = OnceLock::from(Ok(InitializedAdapter::new(targets, file)?));
        Ok((Arc::new(Self { begun, total_params, is_replaced: AtomicBool::new(false) }), adapter))
    }

    /// Waits until it is there.
    fn begun(&self) -> Result<&InitializedAdapter> {
        self.begun.wait().as_ref().map_err(Clone::clone)
    }

    /// A hash of what it began with.
    pub fn origin(&self) -> Result<u64> {
        Ok(self.begun()?.origin)
    }

    pub fn get(&self) -> Result<AdapterFile> {
        Ok(self.begun()?.file.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Replaces what it has become.
    pub fn set(&self, file: &AdapterFile) {
        if let Some(Ok(begun)) = self.begun.get() {
            begun.file.lock().unwrap_or_else(PoisonError::into_inner).clone_from(file);
        }
    }
}

impl InitializedAdapter {
    fn new(targets: &LoraTargets, file: AdapterFile) -> Result<Self> {
        Ok(Self { origin: origin(targets, &file)?, file: Mutex::new(file) })
    }
}

#[async_trait]
impl Adapter for Arc<TrainedAdapter> {
    fn total_params(&self) -> usize {
        self.total_params
    }

    fn save(&self, path: &Path) -> Result<()> {
        self.get()?.write(path)
    }

    async fn save_async(&self, path: &Path) -> Result<()> {
        let (learned, path) = (self.clone(), path.to_owned());
        blocking::run("save an adapter", move || learned.save(&path)).await
    }
}

/// The numbers of an adapter that are learned: A, B and, if there is one, the magnitude of each module.
pub fn parameters(file: &mut AdapterFile) -> Vec<&mut Vec<f32>> {
    let tensors = file.modules.values_mut();
    tensors.flat_map(|LoraTensors { a, b, magnitude, .. }| [a, b].into_iter().chain(magnitude)).collect()
}

/// A hash of an adapter as it is, and of a row of each matrix that it changes: other models have others.
fn origin(targets: &LoraTargets, file: &AdapterFile) -> Result<u64> {
    let mut hash = Fnv1a::default();
    hash.add([u8::from(file.bfloat16)].into_iter());
    for (module, LoraTensors { rank, scale, a, b, magnitude }) in &file.modules {
        hash.add(format!("{module} {rank} {scale}").bytes());
        [a, b].into_iter().chain(magnitude).for_each(|values| hash.add(bits(values)));
    }
    for index in targets.matched(file)?.into_iter().flat_map(|(_, targets)| targets) {
        hash.add(bits(&targets.get(*index).weight.row(0)?));
    }
    Ok(hash.0)
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}
