use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicBool},
    thread,
};

use async_trait::async_trait;

use super::{Adapter, LoraConfig, checkpoint::Hash, random::Random};
use crate::{
    AdapterFile, Error, LoraTensors, Result, blocking,
    decoder::{self, Site, Sites},
    engine::Access,
};

/// Stands for all linear maps of the layers, as in PEFT.
const ALL_LINEAR: &str = "all-linear";

/// An adapter between the steps of its training.
pub struct Learned {
    /// What it began with and has become. A thread finds that out: the lengths of all rows of the weights may be
    /// needed.
    begun: OnceLock<Result<Begun>>,
    total_params: usize,
    /// Whether requests are to use one that was applied later.
    pub is_replaced: AtomicBool,
}

struct Begun {
    /// A hash of what it began with.
    origin: u64,
    file: Mutex<AdapterFile>,
}

impl Learned {
    /// A new adapter, which is there soon.
    pub fn begin(access: Access, config: &LoraConfig) -> Result<Arc<Self>> {
        config.validate()?;
        let plan = plan(access.network.sites(), config)?;
        let total_params = plan.iter().map(|planned| planned.total_params(config)).sum();
        let learned = Arc::new(Self { begun: OnceLock::new(), total_params, is_replaced: AtomicBool::new(false) });
        let (of_thread, config) = (learned.clone(), config.clone());
        let work = move || {
            let begin = || {
                let file = random(&access, &plan, &config)?;
                Begun::new(access.network.sites(), file)
            };
            let begun = catch_unwind(AssertUnwindSafe(begin));
            let begun = begun.unwrap_or_else(|panic| Err(Error::panicked("a new adapter", panic.as_ref())));
            // The model may close from now on.
            drop(access);
            let _ = of_thread.begun.set(begun);
        };
        let thread = thread::Builder::new().name("tokenflow adapter".into()).spawn(work);
        thread.map_err(|error| Error::internal(format!("a thread could not be started: {error}")))?;
        Ok(learned)
    }

    /// An adapter that goes on as a directory has it, also for requests.
    pub fn read(sites: &Sites, path: &Path, config: &LoraConfig) -> Result<(Arc<Self>, decoder::Adapter)> {
        config.validate()?;
        let mut file = AdapterFile::read(path)?;
        file.bfloat16 = config.bfloat16;
        let adapter = sites.resolve(&file)?;
        let total_params = parameters(&mut file).iter().map(|values| values.len()).sum();
        let begun = OnceLock::from(Ok(Begun::new(sites, file)?));
        Ok((Arc::new(Self { begun, total_params, is_replaced: AtomicBool::new(false) }), adapter))
    }

    /// Waits until it is there.
    fn begun(&self) -> Result<&Begun> {
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

impl Begun {
    fn new(sites: &Sites, file: AdapterFile) -> Result<Self> {
        Ok(Self { origin: origin(sites, &file)?, file: Mutex::new(file) })
    }
}

#[async_trait]
impl Adapter for Arc<Learned> {
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
fn origin(sites: &Sites, file: &AdapterFile) -> Result<u64> {
    let mut hash = Hash::default();
    hash.add([u8::from(file.bfloat16)].into_iter());
    for (module, LoraTensors { rank, scale, a, b, magnitude }) in &file.modules {
        hash.add(format!("{module} {rank} {scale}").bytes());
        [a, b].into_iter().chain(magnitude).for_each(|values| hash.add(bits(values)));
    }
    for index in sites.matched(file)?.into_iter().flat_map(|(_, sites)| sites) {
        hash.add(bits(&sites.get(*index).weight.row(0)?));
    }
    Ok(hash.0)
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}

/// A module that a new adapter is to change.
struct Planned {
    /// What decides its random numbers.
    stream: u64,
    name: String,
    /// Indices of the sites that make its output.
    sites: Vec<usize>,
    inputs: usize,
    outputs: usize,
}

impl Planned {
    fn total_params(&self, config: &LoraConfig) -> usize {
        let magnitudes = if config.dora { self.outputs } else { 0 };
        config.rank * (self.inputs + self.outputs) + magnitudes
    }

    /// The lengths of the rows of the weight.
    fn norms(&self, sites: &Sites, tensors: &LoraTensors) -> Result<Vec<f32>> {
        let mut norms = vec![0.0; self.outputs];
        for site in self.sites.iter().map(|site| sites.get(*site)) {
            let of_site = site.norms(tensors)?.into_iter().enumerate();
            of_site.for_each(|(row, norm)| norms[site.module_row(row)] = norm);
        }
        Ok(norms)
    }
}

/// The modules that a configuration targets.
fn plan(sites: &Sites, config: &LoraConfig) -> Result<Vec<Planned>> {
    let known = sites.short_names();
    let is_known = |key: &String| key == ALL_LINEAR || sites.modules().any(|(module, _)| is_called(module, key));
    if let Some(unknown) = config.target_keys.iter().find(|key| !is_known(key)) {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::config("target_keys", format!("{unknown:?} is none of {known}, {ALL_LINEAR}")));
    }
    let mut plan = Vec::new();
    for (stream, (module, indices)) in (0..).zip(sites.modules()) {
        let parts: Vec<&Site> = indices.iter().map(|site| sites.get(*site)).collect();
        let in_layer = parts.iter().all(|site| site.layer.is_some());
        let targeted = |key: &String| is_called(module, key) || (key == ALL_LINEAR && in_layer);
        let Some(first) = parts.first().filter(|_| config.target_keys.iter().any(targeted)) else { continue };
        let ([_, inputs], outputs) = (first.weight.shape()?, first.module_outputs);
        if config.rank > inputs.max(outputs) {
            let reason = format!("{} is more than {module} of [{outputs}, {inputs}] can have", config.rank);
            return Err(Error::config("rank", reason));
        }
        plan.push(Planned { stream, name: sites.full_name(module), sites: indices.to_vec(), inputs, outputs });
    }
    Ok(plan)
}

/// A new adapter as PEFT begins one: A is random, B is zero, magnitudes are those of the weights.
fn random(access: &Access, plan: &[Planned], config: &LoraConfig) -> Result<AdapterFile> {
    let mut modules = BTreeMap::new();
    for planned in plan {
        access.check_open()?;
        let mut random = Random::new(config.seed, planned.stream);
        let bound = (planned.inputs as f32).sqrt().recip();
        let a = (0..config.rank * planned.inputs).map(|_| bound * random.uniform()).collect();
        let b = vec![0.0; planned.outputs * config.rank];
        let mut tensors = LoraTensors::new(config.rank, config.scale(), a, b)?;
        if config.dora {
            tensors.magnitude = Some(planned.norms(access.network.sites(), &tensors)?);
        }
        modules.insert(planned.name.clone(), tensors);
    }
    Ok(AdapterFile { bfloat16: config.bfloat16, ..AdapterFile::new(modules) })
}

/// Whether a key is a module's name, or what it ends with.
fn is_called(module: &str, key: &str) -> bool {
    module.strip_suffix(key).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}
