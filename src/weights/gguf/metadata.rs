//! The key/value pairs of GGUF files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::reader::GgufReader;
use crate::{Error, Result};

/// The key/value pairs of a GGUF file, with getters that name file, key and value in their errors.
#[derive(Debug)]
pub struct GgufMetadata {
    path: PathBuf,
    values: BTreeMap<String, GgufValue>,
}

#[derive(Debug)]
enum GgufValue {
    Int(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(GgufArray),
}

/// The array types that models use.
#[derive(Debug)]
pub enum GgufArray {
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Bools(Vec<bool>),
    Strings(Vec<String>),
}

/// GGUF's codes of value types.
mod value_type {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

impl GgufMetadata {
    pub(super) fn read(path: &Path, reader: &mut GgufReader<'_>, count: usize) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = reader.string()?;
            let kind = reader.u32()?;
            let value = read_value(reader, kind).map_err(|reason| format!("{key}: {reason}"))?;
            if values.insert(key.clone(), value).is_some() {
                return Err(format!("{key} is there twice"));
            }
        }
        Ok(Self { path: path.to_owned(), values })
    }

    pub fn bad(&self, key: &str, why: &str) -> Error {
        Error::model(&self.path, format!("{key}: {why}"))
    }

    pub fn missing(&self, key: &str) -> Error {
        self.bad(key, "is missing")
    }

    pub fn opt_i64(&self, key: &str) -> Result<Option<i64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Int(n)) => Ok(Some(*n)),
            // One value for all layers, written once a layer.
            Some(GgufValue::Array(GgufArray::Ints(n))) if n.iter().all(|m| *m == n[0]) && !n.is_empty() => {
                Ok(Some(n[0]))
            }
            Some(_) => Err(self.bad(key, "is not a whole number, the same for all layers")),
        }
    }

    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        let Some(n) = self.opt_i64(key)? else { return Ok(None) };
        u32::try_from(n).map(|n| Some(n as usize)).map_err(|_| self.bad(key, &format!("{n} is not a size")))
    }

    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.opt_usize(key)?.map(|n| n as u32))
    }

    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Float(x)) => Ok(Some(*x)),
            Some(GgufValue::Int(n)) => Ok(Some(*n as f64)),
            Some(_) => Err(self.bad(key, "is not a number")),
        }
    }

    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.bad(key, "is not true or false")),
        }
    }

    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "is not text")),
        }
    }

    pub fn opt_array(&self, key: &str) -> Result<Option<&GgufArray>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Array(array)) => Ok(Some(array)),
            Some(_) => Err(self.bad(key, "is not an array")),
        }
    }

    pub fn strings(&self, key: &str) -> Result<&[String]> {
        match self.opt_array(key)? {
            Some(GgufArray::Strings(strings)) => Ok(strings),
            Some(_) => Err(self.bad(key, "is not an array of texts")),
            None => Err(self.missing(key)),
        }
    }
}

#[cfg(test)]
impl GgufMetadata {
    /// The metadata that a JSON object says; empty arrays are texts.
    pub fn of_json(path: &Path, object: &serde_json::Value) -> Self {
        let value = |value: &serde_json::Value| match value {
            serde_json::Value::Bool(b) => GgufValue::Bool(*b),
            serde_json::Value::Number(n) => {
                n.as_i64().map_or_else(|| GgufValue::Float(n.as_f64().unwrap()), GgufValue::Int)
            }
            serde_json::Value::String(text) => GgufValue::String(text.clone()),
            array => GgufValue::Array(match array.get(0) {
                Some(n) if n.is_i64() => GgufArray::Ints(serde_json::from_value(array.clone()).unwrap()),
                Some(n) if n.is_f64() => GgufArray::Floats(serde_json::from_value(array.clone()).unwrap()),
                _ => GgufArray::Strings(serde_json::from_value(array.clone()).unwrap()),
            }),
        };
        let values = object.as_object().unwrap().iter().map(|(key, of)| (key.clone(), value(of)));
        Self { path: path.to_owned(), values: values.collect() }
    }
}

fn read_value(reader: &mut GgufReader<'_>, kind: u32) -> Result<GgufValue, String> {
    Ok(match kind {
        value_type::BOOL => GgufValue::Bool(read_bool(reader)?),
        value_type::STRING => GgufValue::String(reader.string()?),
        value_type::ARRAY => GgufValue::Array(read_array(reader)?),
        value_type::F32 | value_type::F64 => GgufValue::Float(read_float(reader, kind)?),
        kind => GgufValue::Int(read_int(reader, kind)?),
    })
}

fn read_array(reader: &mut GgufReader<'_>) -> Result<GgufArray, String> {
    let kind = reader.u32()?;
    let len = reader.usize()?;
    reader.check_count("array elements", len, min_bytes(kind)?)?;
    Ok(match kind {
        value_type::BOOL => GgufArray::Bools(repeat(len, || read_bool(reader))?),
        value_type::STRING => GgufArray::Strings(repeat(len, || reader.string())?),
        value_type::F32 | value_type::F64 => GgufArray::Floats(repeat(len, || read_float(reader, kind))?),
        kind => GgufArray::Ints(repeat(len, || read_int(reader, kind))?),
    })
}

fn repeat<T>(len: usize, mut read: impl FnMut() -> Result<T, String>) -> Result<Vec<T>, String> {
    (0..len).map(|_| read()).collect()
}

fn min_bytes(kind: u32) -> Result<usize, String> {
    match kind {
        value_type::U8 | value_type::I8 | value_type::BOOL => Ok(1),
        value_type::U16 | value_type::I16 => Ok(2),
        value_type::U32 | value_type::I32 | value_type::F32 => Ok(4),
        value_type::U64 | value_type::I64 | value_type::F64 | value_type::STRING => Ok(8),
        value_type::ARRAY => Err("is an array of arrays".into()),
        kind => Err(format!("has the unknown type {kind}")),
    }
}

fn read_bool(reader: &mut GgufReader<'_>) -> Result<bool, String> {
    Ok(reader.array::<1>()?[0] != 0)
}

fn read_float(reader: &mut GgufReader<'_>, kind: u32) -> Result<f64, String> {
    Ok(match kind {
        value_type::F32 => f64::from(f32::from_le_bytes(reader.array()?)),
        _ => f64::from_le_bytes(reader.array()?),
    })
}

fn read_int(reader: &mut GgufReader<'_>, kind: u32) -> Result<i64, String> {
    Ok(match kind {
        value_type::U8 => i64::from(u8::from_le_bytes(reader.array()?)),
        value_type::I8 => i64::from(i8::from_le_bytes(reader.array()?)),
        value_type::U16 => i64::from(u16::from_le_bytes(reader.array()?)),
        value_type::I16 => i64::from(i16::from_le_bytes(reader.array()?)),
        value_type::U32 => i64::from(u32::from_le_bytes(reader.array()?)),
        value_type::I32 => i64::from(i32::from_le_bytes(reader.array()?)),
        value_type::U64 => {
            let value = u64::from_le_bytes(reader.array()?);
            i64::try_from(value).map_err(|_| format!("{value} is out of range"))?
        }
        value_type::I64 => i64::from_le_bytes(reader.array()?),
        kind => return Err(format!("has the unknown type {kind}")),
    })
}
