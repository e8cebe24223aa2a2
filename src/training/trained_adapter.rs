//! An adapter that was applied for training.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicBool},
    thread,
};

use async_trait::async_trait;

use super::{Adapter, LoraConfig, adapter_init, fnv::Fnv1a};
use crate::{
    AdapterFile, Error, LoraTensors, Result,
    adapters::{LoraAdapter, LoraTargets},
    blocking,
    decoder::Network,
    engine::ModelLease,
};

/// An adapter that was applied for training: its parameters after the latest step.
pub struct TrainedAdapter {
    /// Set by the thread that initializes the adapter: DoRA takes the norms of all rows of the weights.
    initialized: OnceLock<Result<InitializedAdapter>>,
    total_params: usize,
    /// Whether a later adapter has become the default of requests.
    pub is_replaced: AtomicBool,
}

struct InitializedAdapter {
    /// A hash of the initial parameters.
    origin: u64,
    file: Mutex<AdapterFile>,
}

impl TrainedAdapter {
    /// Starts a thread that initializes a new adapter.
    pub fn initialize(lease: ModelLease<Network>, config: &LoraConfig) -> Result<Arc<Self>> {
        config.validate()?;
        let plan = adapter_init::plan(lease.network.targets(), config)?;
        let total_params = plan.iter().map(|module| module.total_params(config)).sum();
        let adapter =
            Arc::new(Self { initialized: OnceLock::new(), total_params, is_replaced: AtomicBool::new(false) });
        let (of_thread, config) = (adapter.clone(), config.clone());
        let work = move || {
            let initialize = || {
                let file = adapter_init::random_adapter(&lease, &plan, &config)?;
                InitializedAdapter::new(lease.network.targets(), file)
            };
            let initialized = catch_unwind(AssertUnwindSafe(initialize));
            let initialized = initialized.unwrap_or_else(|panic| Err(Error::panicked("a new adapter", panic.as_ref())));
            // The model may close as soon as the adapter is initialized.
            drop(lease);
            let _ = of_thread.initialized.set(initialized);
        };
        let thread = thread::Builder::new().name("tokenflow adapter".into()).spawn(work);
        thread.map_err(|error| Error::internal(format!("a thread could not be started: {error}")))?;
        Ok(adapter)
    }

    /// Reads an adapter to continue training from, and prepares it for requests.
    pub fn load(targets: &LoraTargets, path: &Path, config: &LoraConfig) -> Result<(Arc<Self>, LoraAdapter)> {
        config.validate()?;
        let mut file = AdapterFile::read(path)?;
        file.bfloat16 = config.bfloat16;
        let adapter = targets.resolve(&file)?;
        let total_params = parameters(&mut file).iter().map(|values| values.len()).sum();
        let initialized = OnceLock::from(Ok(InitializedAdapter::new(targets, file)?));
        Ok((Arc::new(Self { initialized, total_params, is_replaced: AtomicBool::new(false) }), adapter))
    }

    /// Waits until the adapter is initialized.
    fn wait(&self) -> Result<&InitializedAdapter> {
        self.initialized.wait().as_ref().map_err(Clone::clone)
    }

    /// A hash of the initial parameters. Waits until they are there.
    pub fn origin(&self) -> Result<u64> {
        Ok(self.wait()?.origin)
    }

    /// A copy of the current parameters. Waits until they are there.
    pub fn snapshot(&self) -> Result<AdapterFile> {
        Ok(self.wait()?.file.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Replaces the parameters.
    pub fn replace(&self, file: &AdapterFile) {
        if let Some(Ok(initialized)) = self.initialized.get() {
            initialized.file.lock().unwrap_or_else(PoisonError::into_inner).clone_from(file);
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
        self.snapshot()?.write(path)
    }

    async fn save_async(&self, path: &Path) -> Result<()> {
        let (adapter, path) = (self.clone(), path.to_owned());
        blocking::run("save an adapter", move || adapter.save(&path)).await
    }
}

/// The trainable parameters of an adapter: A, B and, with DoRA, the magnitude of each module.
pub fn parameters(file: &mut AdapterFile) -> Vec<&mut Vec<f32>> {
    let tensors = file.modules.values_mut();
    tensors.flat_map(|LoraTensors { a, b, magnitude, .. }| [a, b].into_iter().chain(magnitude)).collect()
}

/// A hash of an adapter, and of one row of each adapted matrix, which tells models apart.
fn origin(targets: &LoraTargets, file: &AdapterFile) -> Result<u64> {
    let mut hash = Fnv1a::default();
    hash.add([u8::from(file.bfloat16)].into_iter());
    for (module, LoraTensors { rank, scale, a, b, magnitude }) in &file.modules {
        hash.add(format!("{module} {rank} {scale}").bytes());
        [a, b].into_iter().chain(magnitude).for_each(|values| hash.add(bits(values)));
    }
    for index in targets.matched(file)?.into_iter().flat_map(|(_, indices)| indices) {
        hash.add(bits(&targets.get(*index).weight.row(0)?));
    }
    Ok(hash.0)
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}
