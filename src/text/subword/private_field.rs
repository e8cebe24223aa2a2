//! Fields of the tokenizers crate's models that it shows in their serialized form only.

use serde::{
    Serialize, Serializer,
    de::DeserializeOwned,
    ser::{Error as _, Impossible, SerializeStruct},
};

use crate::text::pattern::BoxError;

/// The value of one field of a model. No other field is serialized: the vocabulary's counts up to its greatest id,
/// which a file chooses.
pub fn private_field<T: DeserializeOwned>(model: &impl Serialize, name: &'static str) -> Result<T, BoxError> {
    let json = model.serialize(FieldOf { name, json: Vec::new() })?;
    Ok(serde_json::from_slice(&json)?)
}

/// Serializes one field of a struct as JSON, and nothing else.
struct FieldOf {
    name: &'static str,
    json: Vec<u8>,
}

impl SerializeStruct for FieldOf {
    type Ok = Vec<u8>;
    type Error = serde_json::Error;

    fn serialize_field<T: ?Sized + Serialize>(&mut self, key: &'static str, value: &T) -> serde_json::Result<()> {
        if key == self.name { serde_json::to_writer(&mut self.json, value) } else { Ok(()) }
    }

    fn end(self) -> serde_json::Result<Vec<u8>> {
        Ok(self.json)
    }
}

type NotAStruct = Impossible<Vec<u8>, serde_json::Error>;

/// The methods of a serializer that no struct calls.
macro_rules! not_a_struct {
    ($($name:ident($($argument:ty),*) -> $ok:ty;)*) => {
        $(fn $name(self, $(_: $argument),*) -> serde_json::Result<$ok> {
            Err(serde_json::Error::custom("not a struct"))
        })*
    };
}

impl Serializer for FieldOf {
    type Ok = Vec<u8>;
    type Error = serde_json::Error;
    type SerializeSeq = NotAStruct;
    type SerializeTuple = NotAStruct;
    type SerializeTupleStruct = NotAStruct;
    type SerializeTupleVariant = NotAStruct;
    type SerializeMap = NotAStruct;
    type SerializeStruct = Self;
    type SerializeStructVariant = NotAStruct;

    fn serialize_struct(self, _: &'static str, _: usize) -> serde_json::Result<Self> {
        Ok(self)
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> serde_json::Result<Vec<u8>> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        value: &T,
    ) -> serde_json::Result<Vec<u8>> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> serde_json::Result<Vec<u8>> {
        value.serialize(self)
    }

    not_a_struct! {
        serialize_bool(bool) -> Vec<u8>;
        serialize_i8(i8) -> Vec<u8>;
        serialize_i16(i16) -> Vec<u8>;
        serialize_i32(i32) -> Vec<u8>;
        serialize_i64(i64) -> Vec<u8>;
        serialize_u8(u8) -> Vec<u8>;
        serialize_u16(u16) -> Vec<u8>;
        serialize_u32(u32) -> Vec<u8>;
        serialize_u64(u64) -> Vec<u8>;
        serialize_f32(f32) -> Vec<u8>;
        serialize_f64(f64) -> Vec<u8>;
        serialize_char(char) -> Vec<u8>;
        serialize_str(&str) -> Vec<u8>;
        serialize_bytes(&[u8]) -> Vec<u8>;
        serialize_none() -> Vec<u8>;
        serialize_unit() -> Vec<u8>;
        serialize_unit_struct(&'static str) -> Vec<u8>;
        serialize_unit_variant(&'static str, u32, &'static str) -> Vec<u8>;
        serialize_seq(Option<usize>) -> NotAStruct;
        serialize_tuple(usize) -> NotAStruct;
        serialize_tuple_struct(&'static str, usize) -> NotAStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> NotAStruct;
        serialize_map(Option<usize>) -> NotAStruct;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> NotAStruct;
    }
}
