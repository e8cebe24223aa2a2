//! Configurations under the keys of Hugging Face's `config.json`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

use super::python_json;
use crate::{Error, Result, files};

/// A model's configuration under the keys of Hugging Face's `config.json`, whatever file it comes
/// from. Getters name file, key and value in their errors.
///
/// Clones share the contents of the file.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    prefix: String,
    file: Arc<Map<String, Value>>,
    /// The keys of the objects in the file that this one is in, outermost first.
    inside: Vec<String>,
    /// Overrides of the file; `None` removes a key.
    changes: BTreeMap<String, Option<Arc<Value>>>,
}

impl Config {
    pub fn new(path: impl Into<PathBuf>, values: Map<String, Value>) -> Self {
        let (prefix, inside, changes) = (String::new(), Vec::new(), BTreeMap::new());
        Self { path: path.into(), prefix, file: Arc::new(values), inside, changes }
    }

    /// Reads a JSON object from a file.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::new(path, python_json::read(path)?))
    }

    /// Reads a JSON object from a file if the file is there.
    pub fn read_if_there(path: &Path) -> Result<Option<Self>> {
        if files::exists(path) { Self::read(path).map(Some) } else { Ok(None) }
    }

    /// The object in the file.
    fn stored(&self) -> Option<&Map<String, Value>> {
        self.inside.iter().try_fold(&*self.file, |object, key| object.get(key)?.as_object())
    }

    /// The value of a key, or null if it says so.
    fn any(&self, key: &str) -> Option<&Value> {
        match self.changes.get(key) {
            Some(change) => change.as_deref(),
            None => self.stored()?.get(key),
        }
    }

    /// With these values for keys that are not mentioned.
    #[must_use]
    pub fn or(&self, defaults: Value) -> Self {
        let mut this = self.clone();
        if let Value::Object(defaults) = defaults {
            defaults.into_iter().for_each(|(key, value)| this.fill(key, value));
        }
        this
    }

    /// With the values of another one for keys that are not mentioned.
    #[must_use]
    pub fn or_of(&self, other: &Self) -> Self {
        let mut this = self.clone();
        other.entries().for_each(|(key, value)| this.fill(key.clone(), value.clone()));
        this
    }

    fn fill(&mut self, key: String, value: Value) {
        if self.any(&key).is_none() {
            self.changes.insert(key, Some(Arc::new(value)));
        }
    }

    /// With these values, whatever others there are.
    #[must_use]
    pub fn with(&self, values: Value) -> Self {
        let mut this = self.clone();
        if let Value::Object(values) = values {
            this.changes.extend(values.into_iter().map(|(key, value)| (key, Some(Arc::new(value)))));
        }
        this
    }

    /// As if these keys were not mentioned.
    #[must_use]
    pub fn without(&self, keys: &[&str]) -> Self {
        let mut this = self.clone();
        this.changes.extend(keys.iter().map(|key| ((*key).to_owned(), None)));
        this
    }

    /// Copies the values of some keys to other keys.
    #[must_use]
    pub fn renamed(&self, pairs: &[(&str, &str)]) -> Self {
        let mut this = self.clone();
        for (key, usual) in pairs {
            if let Some(value) = self.get(key) {
                this.changes.insert((*usual).to_owned(), Some(Arc::new(value.clone())));
            }
        }
        this
    }

    /// Bits per weight and weights per scale that the configuration of a Hugging Face directory names; zeros if the
    /// weights are not quantized.
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
        self.any(key).filter(|value| !value.is_null())
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries().map(|(key, _)| key.as_str())
    }

    /// All keys and their values.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        let stored = self.stored().into_iter().flatten().filter(|(key, _)| !self.changes.contains_key(*key));
        stored.chain(self.changes.iter().filter_map(|(key, value)| Some((key, value.as_deref()?))))
    }

    /// An error about the value of `key`.
    pub fn bad(&self, key: &str, why: &str) -> Error {
        let value = self.any(key).unwrap_or(&Value::Null);
        let value = python_json::special_float(value).map_or_else(|| value.to_string(), |number| number.to_string());
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
        let number = value.as_f64().or_else(|| python_json::special_float(value)).filter(|n| n.is_finite());
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
        let values = value.as_object().ok_or_else(|| self.bad(key, "not an object"))?;
        let prefix = format!("{}{key}.", self.prefix);
        if self.changes.contains_key(key) {
            return Ok(Some(Config { prefix, ..Self::new(&self.path, values.clone()) }));
        }
        let inside = self.inside.iter().map(String::as_str).chain([key]).map(str::to_owned).collect();
        let (path, file, changes) = (self.path.clone(), self.file.clone(), BTreeMap::new());
        Ok(Some(Config { path, prefix, file, inside, changes }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn overrides_share_the_file() {
        let Value::Object(values) = json!({"a": 1, "none": null, "inner": {"b": 2, "deep": {"c": 3}}}) else {
            unreachable!()
        };
        let file = Config::new("config.json", values);
        let changed = file.or(json!({"a": 7, "none": 7, "new": {"d": 4}})).renamed(&[("a", "e")]).without(&["inner"]);
        assert!(Arc::ptr_eq(&file.file, &changed.file));
        assert_eq!(changed.get("a"), Some(&json!(1)), "defaults are for what is not mentioned");
        assert_eq!((changed.get("none"), changed.get("inner")), (None, None));
        assert_eq!(changed.or(json!({"inner": 5})).size("inner").unwrap(), 5);
        assert_eq!(changed.size("e").unwrap(), 1);
        assert_eq!(changed.opt_object("new").unwrap().unwrap().size("d").unwrap(), 4);
        let deep = file.opt_object("inner").unwrap().unwrap().opt_object("deep").unwrap().unwrap();
        assert!(Arc::ptr_eq(&file.file, &deep.file));
        assert_eq!(deep.size("c").unwrap(), 3);
        assert_eq!(deep.bad("c", "odd").to_string(), "config.json: inner.deep.c = 3: odd");
        assert_eq!(changed.keys().collect::<Vec<_>>(), ["a", "none", "e", "new"]);
    }
}
