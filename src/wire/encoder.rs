//! postcard's format, written.
//!
//! The bytes are those that postcard writes, which reads them. It would write a number into a place of its own and copy
//! it from there byte by byte; numbers are most of what small values consist of, and here they are written in place.

use std::fmt::{self, Display, Write};
use std::ops::Range;

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::buffers;
use super::codec::put_varint;
use super::refusal;

/// Bytes of the longest number of 64 bits.
const LONGEST: usize = 10;

/// Why a value cannot be written. As small as can be, for every number could be refused: the text that a value gave is
/// [kept apart](refusal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// It is longer than the limit.
    TooLong,
    /// A sequence does not know its length.
    UnknownLength,
    /// Its `Serialize` says so.
    Refused,
}

type Result<T> = std::result::Result<T, Error>;

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => f.write_str("it is too long"),
            Self::UnknownLength => f.write_str("a sequence does not know its length"),
            Self::Refused => f.write_str(&refusal::kept()),
        }
    }
}

impl std::error::Error for Error {}

impl serde::ser::Error for Error {
    #[cold]
    fn custom<T: Display>(text: T) -> Self {
        refusal::keep(text);
        Self::Refused
    }
}

/// Appends to a vector, up to a limit.
pub(super) struct Encoder<'a> {
    bytes: &'a mut Vec<u8>,
    /// How long the vector may become.
    limit: usize,
    /// Where the last byte string or text went, without its length.
    last: Range<usize>,
}

impl<'a> Encoder<'a> {
    #[inline]
    pub(super) fn new(bytes: &'a mut Vec<u8>, limit: usize) -> Self {
        Self {
            bytes,
            limit,
            last: 0..0,
        }
    }

    /// Where the byte string or text begins with which everything ends; the end where it ends otherwise.
    pub(super) fn tail(&self) -> usize {
        let end = self.bytes.len();
        if self.last.end == end {
            self.last.start
        } else {
            end
        }
    }

    #[inline]
    fn check(&self, more: usize) -> Result<()> {
        if self.limit - self.bytes.len() < more {
            return Err(Error::TooLong);
        }
        Ok(())
    }

    #[inline]
    fn byte(&mut self, byte: u8) -> Result<()> {
        self.check(1)?;
        self.bytes.push(byte);
        Ok(())
    }

    /// So many bytes as they are.
    #[inline]
    fn array<const N: usize>(&mut self, bytes: [u8; N]) -> Result<()> {
        self.check(N)?;
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    /// Seven bits a byte, the lowest first; all bytes but the last have the eighth bit.
    #[inline]
    fn varint(&mut self, value: u64) -> Result<()> {
        if value < 0x80 {
            return self.byte(value as u8);
        }
        let start = self.bytes.len();
        if self.limit - start < LONGEST {
            return self.long_varint(value.into());
        }
        self.bytes.extend_from_slice(&[0; LONGEST]);
        let mut length = 0;
        if let Some(room) = self.bytes[start..].first_chunk_mut() {
            length = put_varint(value, room);
        }
        self.bytes.truncate(start + length);
        Ok(())
    }

    /// The same of what may be longer, or of what may not fit.
    #[cold]
    fn long_varint(&mut self, mut value: u128) -> Result<()> {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80)?;
            value >>= 7;
        }
        self.byte(value as u8)
    }

    #[inline]
    fn length(&mut self, length: Option<usize>) -> Result<()> {
        self.varint(length.ok_or(Error::UnknownLength)? as u64)
    }

    /// A byte string or text.
    #[inline]
    fn string(&mut self, bytes: &[u8]) -> Result<()> {
        self.varint(bytes.len() as u64)?;
        self.check(bytes.len())?;
        let start = self.bytes.len();
        buffers::reserve(self.bytes, bytes.len());
        self.bytes.extend_from_slice(bytes);
        self.last = start..self.bytes.len();
        Ok(())
    }
}

/// Signed numbers of a small amount become small: 0, -1, 1, -2 are 0, 1, 2, 3.
#[inline]
fn zig_zag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

macro_rules! numbers {
    ($($method:ident($value:ident: $type:ty) => $do:ident($what:expr),)*) => {$(
        #[inline]
        fn $method(self, $value: $type) -> Result<()> {
            self.$do($what)
        }
    )*};
}

impl Serializer for &mut Encoder<'_> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    numbers! {
        serialize_bool(value: bool) => byte(value.into()),
        serialize_i8(value: i8) => byte(value as u8),
        serialize_i16(value: i16) => varint(zig_zag(value.into())),
        serialize_i32(value: i32) => varint(zig_zag(value.into())),
        serialize_i64(value: i64) => varint(zig_zag(value)),
        serialize_i128(value: i128) => long_varint((value << 1 ^ value >> 127) as u128),
        serialize_u8(value: u8) => byte(value),
        serialize_u16(value: u16) => varint(value.into()),
        serialize_u32(value: u32) => varint(value.into()),
        serialize_u64(value: u64) => varint(value),
        serialize_u128(value: u128) => long_varint(value),
        serialize_f32(value: f32) => array(value.to_le_bytes()),
        serialize_f64(value: f64) => array(value.to_le_bytes()),
        serialize_char(value: char) => string(value.encode_utf8(&mut [0; 4]).as_bytes()),
        serialize_str(value: &str) => string(value.as_bytes()),
        serialize_bytes(value: &[u8]) => string(value),
    }

    #[inline]
    fn serialize_none(self) -> Result<()> {
        self.byte(0)
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        self.byte(1)?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_unit(self) -> Result<()> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _: &'static str) -> Result<()> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(self, _: &'static str, index: u32, _: &'static str) -> Result<()> {
        self.varint(index.into())
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<()> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Result<()> {
        self.varint(index.into())?;
        value.serialize(self)
    }

    #[inline]
    fn serialize_seq(self, length: Option<usize>) -> Result<Self> {
        self.length(length)?;
        Ok(self)
    }

    #[inline]
    fn serialize_tuple(self, _: usize) -> Result<Self> {
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self> {
        Ok(self)
    }

    #[inline]
    fn serialize_tuple_variant(self, _: &'static str, index: u32, _: &'static str, _: usize) -> Result<Self> {
        self.varint(index.into())?;
        Ok(self)
    }

    #[inline]
    fn serialize_map(self, length: Option<usize>) -> Result<Self> {
        self.length(length)?;
        Ok(self)
    }

    #[inline]
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self> {
        Ok(self)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self> {
        self.varint(index.into())?;
        Ok(self)
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<()> {
        let mut text = String::new();
        write!(text, "{value}").map_err(serde::ser::Error::custom)?;
        self.string(text.as_bytes())
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// What values consist of, one behind the other.
macro_rules! compound {
    ($($trait:ident { $($method:ident($($name:ident: $type:ty)?))* })*) => {$(
        impl $trait for &mut Encoder<'_> {
            type Ok = ();
            type Error = Error;

            $(
                #[inline]
                fn $method<T: Serialize + ?Sized>(&mut self, $($name: $type,)? value: &T) -> Result<()> {
                    value.serialize(&mut **self)
                }
            )*

            #[inline]
            fn end(self) -> Result<()> {
                Ok(())
            }
        }
    )*};
}

compound! {
    SerializeSeq { serialize_element() }
    SerializeTuple { serialize_element() }
    SerializeTupleStruct { serialize_field() }
    SerializeTupleVariant { serialize_field() }
    SerializeMap { serialize_key() serialize_value() }
    SerializeStruct { serialize_field(_key: &'static str) }
    SerializeStructVariant { serialize_field(_key: &'static str) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv6Addr};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn encoded(value: &impl Serialize) -> (Vec<u8>, usize) {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, usize::MAX);
        value.serialize(&mut encoder).unwrap();
        let tail = encoder.tail();
        (bytes, tail)
    }

    /// Every method that a value can call.
    #[derive(Clone, Debug, serde::Serialize)]
    enum Shape {
        Unit,
        Newtype(Newtype),
        Tuple(u8, i8),
        Struct { first: u16, second: Option<Box<Shape>> },
    }

    #[derive(Clone, Debug, serde::Serialize)]
    struct Nothing;

    #[derive(Clone, Debug, serde::Serialize)]
    struct Newtype(Pair);

    #[derive(Clone, Debug, serde::Serialize)]
    struct Pair(u64, i64);

    #[test]
    fn every_shape_is_as_postcard_writes_it() {
        let second = Some(Box::new(Shape::Newtype(Newtype(Pair(u64::MAX, i64::MIN)))));
        let value = (
            [
                Shape::Unit,
                Shape::Tuple(200, -100),
                Shape::Struct { first: 300, second },
                Shape::Struct {
                    first: 0,
                    second: None,
                },
            ],
            (Nothing, (), true, 'x', '\u{1f600}', 1.5_f32, -2.5_f64),
            (u128::MAX, i128::MIN, 0_u128, -1_i128, i16::MIN, i32::MAX),
            BTreeMap::from([("key".to_owned(), vec![1_u32, 128, u32::MAX])]),
            (
                Duration::from_nanos(7),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
                format_args!("{}", 5),
                bytes::Bytes::from(vec![1; 200]),
            ),
        );
        assert_eq!(encoded(&value).0, postcard::to_allocvec(&value).unwrap());
    }

    #[test]
    fn a_tail_is_the_last_byte_string_or_text_if_nothing_follows() {
        assert_eq!(encoded(&("ab", "cde")), (b"\x02ab\x03cde".to_vec(), 4));
        assert_eq!(encoded(&("ab", 1_u8)), (b"\x02ab\x01".to_vec(), 4));
        assert_eq!(encoded(&("ab", "")), (b"\x02ab\0".to_vec(), 4));
        assert_eq!(encoded(&1.0_f64).1, 8);
        assert_eq!(encoded(&()).1, 0);
    }

    proptest! {
        #[test]
        fn numbers_are_as_postcard_writes_them(value in any::<u64>(), shift in 0..64_u32) {
            let value = value >> shift;
            let all = (value, value as i64, -(value as i64 >> 1), value as u32, value as i32, value as u16, value as i16);
            prop_assert_eq!(encoded(&all).0, postcard::to_allocvec(&all).unwrap());
        }

        #[test]
        fn nothing_is_longer_than_the_limit(value in any::<(u64, u128, String, f32)>(), limit in 0..64_usize) {
            let mut bytes = Vec::new();
            let whole = postcard::to_allocvec(&value).unwrap();
            let result = value.serialize(&mut Encoder::new(&mut bytes, limit));
            prop_assert_eq!(result.is_ok(), whole.len() <= limit);
            prop_assert!(bytes.len() <= limit && whole.starts_with(&bytes));
        }
    }
}
