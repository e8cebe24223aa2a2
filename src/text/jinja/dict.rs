//! Dicts, which keep the order of their keys.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    rc::Rc,
    sync::LazyLock,
};

use super::{
    budget::{HeldMemory, Outcome, RenderBudget, fail},
    compare::equal,
    value::{Value, nesting},
};

/// Memory that a dict takes beside its entries.
const DICT_BYTES: usize = 128;

/// Units of work of a new entry, beside hashing its key.
const INSERT_UNITS: usize = 8;

#[derive(Clone)]
pub struct Dict(Rc<DictInner>);

struct DictInner {
    entries: Vec<(Value, Value)>,
    index: Index,
    depth: usize,
    _held: HeldMemory,
}

/// The places of entries by the hashes of their keys.
type Index = HashMap<u64, Vec<u32>>;

impl Dict {
    pub fn depth(&self) -> usize {
        self.0.depth
    }

    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// The value of a key.
    pub fn get(&self, budget: &RenderBudget, key: &Value) -> Outcome<Option<&Value>> {
        let hash = hash(budget, key)?;
        Ok(find(budget, &self.0.entries, &self.0.index, key, hash)?.map(|at| &self.0.entries[at].1))
    }
}

impl std::ops::Deref for Dict {
    type Target = [(Value, Value)];

    fn deref(&self) -> &[(Value, Value)] {
        &self.0.entries
    }
}

/// A dict that is being made.
pub struct DictBuilder {
    budget: RenderBudget,
    entries: Vec<(Value, Value)>,
    index: Index,
    held: HeldMemory,
}

impl DictBuilder {
    pub fn new(budget: &RenderBudget) -> Outcome<Self> {
        let held = budget.hold(DICT_BYTES)?;
        Ok(Self { budget: budget.clone(), entries: Vec::new(), index: Index::new(), held })
    }

    /// Adds an entry, or gives the one of the key another value. Whether the key is new.
    pub fn insert(&mut self, key: Value, value: Value) -> Outcome<bool> {
        self.budget.work(INSERT_UNITS)?;
        let hash = hash(&self.budget, &key)?;
        if let Some(at) = find(&self.budget, &self.entries, &self.index, &key, hash)? {
            self.entries[at].1 = value;
            return Ok(false);
        }
        self.held.grow(2 * size_of::<(Value, Value)>())?;
        self.index.entry(hash).or_default().push(self.entries.len() as u32);
        self.entries.push((key, value));
        Ok(true)
    }

    pub fn extend(&mut self, other: &Dict) -> Outcome<()> {
        other.iter().try_for_each(|(key, value)| self.insert(key.clone(), value.clone()).map(drop))
    }

    pub fn finish(self) -> Outcome<Dict> {
        let depth = nesting(self.entries.iter().flat_map(|(key, value)| [key, value]))?;
        self.budget.work(1 + self.entries.len())?;
        let Self { entries, index, held, .. } = self;
        Ok(Dict(Rc::new(DictInner { entries, index, depth, _held: held })))
    }
}

fn find(
    budget: &RenderBudget,
    entries: &[(Value, Value)],
    index: &Index,
    key: &Value,
    hash: u64,
) -> Outcome<Option<usize>> {
    let Some(candidates) = index.get(&hash) else { return Ok(None) };
    for at in candidates {
        if equal(budget, &entries[*at as usize].0, key)? {
            return Ok(Some(*at as usize));
        }
    }
    Ok(None)
}

fn hash(budget: &RenderBudget, key: &Value) -> Outcome<u64> {
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let mut hasher = STATE.build_hasher();
    write_hash(budget, key, &mut hasher)?;
    Ok(hasher.finish())
}

/// Equal values have equal hashes: numbers of all types, too.
fn write_hash(budget: &RenderBudget, key: &Value, hasher: &mut impl Hasher) -> Outcome<()> {
    budget.work(1)?;
    match key {
        Value::Undefined(_) => 0u8.hash(hasher),
        Value::None => 1u8.hash(hasher),
        Value::Bool(_) | Value::Int(_) => key.as_int().hash(hasher),
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e38 => Some(*number as i128).hash(hasher),
        Value::Float(number) => number.to_bits().hash(hasher),
        Value::Text(text) => {
            budget.scan(text.len())?;
            text.hash(hasher);
        }
        Value::Tuple(items) => items.iter().try_for_each(|item| write_hash(budget, item, hasher))?,
        Value::Range(steps) => steps.len().hash(hasher),
        Value::Namespace(number) => (2u8, number).hash(hasher),
        Value::Macro(found) => (3u8, found.index).hash(hasher),
        Value::Function(function) => (4u8, *function as u8).hash(hasher),
        Value::Loop(_) | Value::Method(_) | Value::Joiner(_) | Value::Cycler(_) | Value::Generator(_) => {
            5u8.hash(hasher)
        }
        Value::List(_) | Value::Dict(_) | Value::View(..) => {
            return fail(format!("unhashable type: '{}'", key.type_name()));
        }
    }
    Ok(())
}
