//! The tensors of an adapter's file, put together by modules.

use std::collections::BTreeMap;

use super::LoraTensors;
use crate::{
    Error, Result,
    weights::{SafetensorsDir, StoredTensor},
};

/// A tensor of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraPart {
    A,
    B,
    Magnitude,
}

/// How a file stores modules.
pub struct AdapterTensors<'a, P, S> {
    /// The module and the part of it that a tensor holds; `None`: neither.
    pub part: P,
    /// The scale of a module's change, given its rank.
    pub scale: S,
    /// Whether A is `[inputs, rank]` and B is `[rank, outputs]`.
    pub transposed: bool,
    /// Whether there are magnitudes.
    pub dora: bool,
    pub file: &'a SafetensorsDir,
}

impl<P, S> AdapterTensors<'_, P, S>
where
    P: Fn(&str) -> Result<Option<(String, LoraPart)>>,
    S: Fn(&str, usize) -> Result<f64>,
{
    pub fn read(&self) -> Result<BTreeMap<String, LoraTensors>> {
        let mut parts: BTreeMap<String, Vec<(LoraPart, &str)>> = BTreeMap::new();
        for name in self.file.names() {
            if let Some((module, part)) = (self.part)(name)? {
                parts.entry(module).or_default().push((part, name));
            }
        }
        if parts.is_empty() {
            return Err(Error::model(self.file.path(), "holds no tensor of an adapter"));
        }
        parts.into_iter().map(|(module, parts)| Ok((module.clone(), self.module(&module, &parts)?))).collect()
    }

    fn module(&self, module: &str, parts: &[(LoraPart, &str)]) -> Result<LoraTensors> {
        let bad = |reason: String| Error::model(self.file.path(), format!("module {module} {reason}"));
        let name = |part: LoraPart| parts.iter().find(|(found, _)| *found == part).map(|(_, name)| *name);
        let required = |part: LoraPart| name(part).ok_or_else(|| bad(format!("has no {part:?}")));
        let a = self.matrix(required(LoraPart::A)?)?;
        let b = self.matrix(required(LoraPart::B)?)?;
        if a.rows != b.columns {
            return Err(bad(format!("has A of rank {} and B of rank {}", a.rows, b.columns)));
        }
        if name(LoraPart::Magnitude).is_some() != self.dora {
            return Err(bad("is of DoRA where the configuration is not, or the other way round".into()));
        }
        let magnitude = name(LoraPart::Magnitude).map(|name| self.values(name, &self.file.get(name)?)).transpose()?;
        if let Some(magnitude) = magnitude.as_ref().filter(|magnitude| magnitude.len() != b.rows) {
            return Err(bad(format!("has {} magnitudes for {} rows", magnitude.len(), b.rows)));
        }
        let scale = (self.scale)(module, a.rows)?;
        if !(scale as f32).is_finite() {
            return Err(bad(format!("is multiplied by {scale}")));
        }
        Ok(LoraTensors { rank: a.rows, scale, a: a.values, b: b.values, magnitude })
    }

    fn matrix(&self, name: &str) -> Result<LoraMatrix> {
        let tensor = self.file.get(name)?;
        let [rows, columns] = *tensor.shape else {
            return Err(Error::model(tensor.path, format!("tensor {name} has the shape {:?}", tensor.shape)));
        };
        if rows == 0 || columns == 0 {
            return Err(Error::model(tensor.path, format!("tensor {name} is empty")));
        }
        let values = self.values(name, &tensor)?;
        if !self.transposed {
            return Ok(LoraMatrix { rows, columns, values });
        }
        let values = (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect();
        Ok(LoraMatrix { rows: columns, columns: rows, values })
    }

    fn values(&self, name: &str, tensor: &StoredTensor<'_>) -> Result<Vec<f32>> {
        let values = tensor.values(name)?;
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::model(tensor.path, format!("tensor {name} holds {value}"))),
            None => Ok(values),
        }
    }
}

/// One of two matrices that are multiplied.
struct LoraMatrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}
