use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A model's configuration under the keys of Hugging Face's `config.json`, whatever file it comes
/// from. Getters name file, key and value in their errors.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    prefix: String,
    values: Map<String, Value>,
}

impl Config {
    pub fn new(path: impl Into<PathBuf>, values: Map<String, Value>) -> Self {
        Self { path: path.into(), prefix: String::new(), values }
    }

    /// Reads a JSON object from a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::model_because(path, "cannot be read", error))?;
        let values = serde_json::from_slice(&bytes)
            .map_err(|error| Error::model_because(path, "is not a JSON object", error))?;
        Ok(Self::new(path, values))
    }

    /// Reads a JSON object from a file if the file is there.
    pub fn read_if_there(path: &Path) -> Result<Option<Self>> {
        if path.exists() { Self::read(path).map(Some) } else { Ok(None) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// With these values for keys that are not mentioned.
    #[must_use]
    pub fn or(&self, defaults: Value) -> Self {
        let mut this = self.clone();
        let Value::Object(defaults) = defaults else { return this };
        this.fill(defaults);
        this
    }

    fn fill(&mut self, defaults: Map<String, Value>) {
        for (key, value) in defaults {
            self.values.entry(key).or_insert(value);
        }
    }

    /// With these values, whatever others there are.
    #[must_use]
    pub fn with(&self, values: Value) -> Self {
        let mut this = self.clone();
        if let Value::Object(values) = values {
            this.values.extend(values);
        }
        this
    }

    /// With the values of some keys in place of those of others.
    #[must_use]
    pub fn renamed(&self, pairs: &[(&str, &str)]) -> Self {
        let mut this = self.clone();
        for (key, usual) in pairs {
            if let Some(value) = self.get(key) {
                this.values.insert((*usual).to_owned(), value.clone());
            }
        }
        this
    }

    /// Bits per weight and weights per scale that the configuration of a Hugging Face directory names; zeros if the
    /// weights are not quantised.
    pub fn quantization(&self) -> (u32, u32) {
        let object = |key: &str| self.opt_object(key).ok().flatten();
        let Some(config) = object("quantization").or_else(|| object("quantization_config")) else { return (0, 0) };
        let number = |keys: &[&str]| keys.iter().find_map(|key| config.opt_usize(key).ok().flatten()).map(|n| n as u32);
        match config.opt_str("quant_method").ok().flatten() {
            Some("fp8") => {
                (8, config.ids("weight_block_size").ok().and_then(|block| block.last().copied()).unwrap_or(0))
            }
            Some("mxfp4") => (4, 32),
            _ => (number(&["bits", "w_bit"]).unwrap_or(0), number(&["group_size", "q_group_size"]).unwrap_or(0)),
        }
    }

    /// The value of a key; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// All keys and their values.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.values.iter()
    }

    /// An error about the value of `key`.
    pub fn bad(&self, key: &str, why: &str) -> Error {
        let value = self.values.get(key).unwrap_or(&Value::Null).to_string();
        let shown: String = value.chars().take(80).collect();
        Error::model(&self.path, format!("{}{key} = {shown}: {why}", self.prefix))
    }

    fn required<T>(&self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| Error::model(&self.path, format!("{}{key} is missing", self.prefix)))
    }

    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.map(|n| Some(n as usize)).ok_or_else(|| self.bad(key, "not a number of 0 to 4294967295"))
    }

    /// A size: at least 1.
    pub fn size(&self, key: &str) -> Result<usize> {
        match self.required(key, self.opt_usize(key)?)? {
            0 => Err(self.bad(key, "at least 1 is needed")),
            n => Ok(n),
        }
    }

    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|n| n.is_finite());
        number.map(Some).ok_or_else(|| self.bad(key, "not a finite number"))
    }

    /// A finite number greater than 0.
    pub fn positive(&self, key: &str) -> Result<f64> {
        let value = self.required(key, self.opt_f64(key)?)?;
        if value > 0.0 { Ok(value) } else { Err(self.bad(key, "not greater than 0")) }
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.bad(key, "not true or false"))
    }

    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.bad(key, "not a string"))
    }

    /// A number or a list of numbers, such as `eos_token_id`.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids: Option<Vec<u32>> = match value {
            Value::Array(values) => values.iter().map(id).collect(),
            value => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.bad(key, "not a whole number or a list of them"))
    }

    pub fn opt_strs(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|values| values.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.bad(key, "not a list of strings"))
    }

    pub fn opt_f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let numbers = value.as_array().and_then(|values| values.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        numbers.map(Some).ok_or_else(|| self.bad(key, "not a list of numbers"))
    }

    /// The object under `key`, with its own errors named by both keys.
    pub fn opt_object(&self, key: &str) -> Result<Option<Config>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let values = value.as_object().ok_or_else(|| self.bad(key, "not an object"))?.clone();
        Ok(Some(Config { path: self.path.clone(), prefix: format!("{}{key}.", self.prefix), values }))
    }
}
