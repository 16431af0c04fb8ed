//! Values to bytes and back: postcard, its errors explained, its silent failures made loud.

use std::any::{Any, type_name};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::buffers;
use super::depth::{Bounded, DEEPEST, Depth, pass_on};
use super::encoder::{self, Encoder};
use super::frame::SHORTEST_TAIL;
use super::refusal;
use super::tail::{Ending, Tail};
use crate::shared::pages;
use crate::shared::same::{is, known, known_ref, unknown};

/// Why a value could not be encoded. Behind a box, so that nothing of it is moved about where all goes well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EncodeError {
    /// The bytes would be more than the limit.
    TooLarge { limit: u64 },
    /// What went wrong, with the type's name.
    Refused(String),
}

/// What postcard cannot do, said to somebody who meets it for the first time.
const ADVICE: &str = "postcard is not self-describing: types that look ahead or have no fixed shape \
    (serde_json::Value, #[serde(untagged)], #[serde(flatten)], #[serde(tag)], skip_serializing_if) do not survive \
    it; wrap the value in procession::Json";

/// Appends `value` to `bytes`, at most `limit` bytes of it. On an error `bytes` is as it was.
#[inline]
pub(crate) fn encode<T: Serialize>(
    value: &T,
    bytes: &mut Vec<u8>,
    limit: u64,
) -> Result<(), Box<EncodeError>> {
    encode_with_tail(value, bytes, limit).map(|_| ())
}

/// The same, and says where the byte string or text lies with which the value ends. The memory of a large one is handed
/// on where the value is that and nothing else.
pub(crate) fn encode_with_ending<T: Serialize>(
    value: T,
    bytes: &mut Vec<u8>,
    limit: u64,
) -> Result<Ending, Box<EncodeError>> {
    match apart(value) {
        Ok(tail) => {
            put_length(tail.len(), bytes, limit)?;
            Ok(Ending::Apart(tail))
        }
        Err(value) => encode_with_tail(&value, bytes, limit).map(Ending::Within),
    }
}

/// The same for a value that is kept.
pub(crate) fn encode_kept<T: Serialize>(
    value: &T,
    bytes: &mut Vec<u8>,
    limit: u64,
) -> Result<Ending, Box<EncodeError>> {
    match known_ref::<T, Bytes>(value).map(|bytes| apart(bytes.clone())) {
        Some(Ok(tail)) => {
            put_length(tail.len(), bytes, limit)?;
            Ok(Ending::Apart(tail))
        }
        _ => encode_with_tail(value, bytes, limit).map(Ending::Within),
    }
}

/// The memory of a large byte string or text.
fn apart<T>(value: T) -> Result<Bytes, T> {
    let length = if let Some(bytes) = known_ref::<T, Bytes>(&value) {
        bytes.len()
    } else if let Some(bytes) = known_ref::<T, Vec<u8>>(&value) {
        bytes.len()
    } else {
        known_ref::<T, String>(&value).map_or(0, String::len)
    };
    if length < SHORTEST_TAIL {
        return Err(value);
    }
    known::<T, Bytes>(value)
        .or_else(|value| known::<T, Vec<u8>>(value).map(Bytes::from))
        .or_else(|value| known::<T, String>(value).map(Bytes::from))
}

/// Appends the length that stands in front of so many bytes, if both are within the limit.
fn put_length(length: usize, bytes: &mut Vec<u8>, limit: u64) -> Result<(), Box<EncodeError>> {
    let mut varint = [0; 10];
    let n = put_varint(length as u64, &mut varint);
    if (length as u64).saturating_add(n as u64) > limit {
        return Err(Box::new(EncodeError::TooLarge { limit }));
    }
    bytes.extend_from_slice(&varint[..n]);
    Ok(())
}

/// What serde makes of a `Vec<u8>`, which it takes byte by byte; and where in `bytes` its own begin.
fn encode_bytes(value: &[u8], bytes: &mut Vec<u8>, limit: u64) -> Result<usize, Box<EncodeError>> {
    put_length(value.len(), bytes, limit)?;
    let start = bytes.len();
    buffers::reserve(bytes, value.len());
    bytes.extend_from_slice(value);
    Ok(start)
}

/// As [`encode`], and says where in `bytes` the byte string or text begins with which the value ends, their length where
/// it does not end with one.
#[inline]
pub(super) fn encode_with_tail<T: Serialize>(
    value: &T,
    bytes: &mut Vec<u8>,
    limit: u64,
) -> Result<usize, Box<EncodeError>> {
    if let Some(value) = known_ref::<T, Vec<u8>>(value) {
        return encode_bytes(value, bytes, limit);
    }
    let start = bytes.len();
    let end = usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(start);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut encoder = Encoder::new(bytes, end);
        value.serialize(&mut encoder)?;
        Ok(encoder.tail())
    }));
    let error = match result {
        Ok(Ok(tail)) => return Ok(tail),
        Ok(Err(error)) => unencoded::<T>(error, limit),
        Err(payload) => encode_panicked::<T>(payload),
    };
    bytes.truncate(start);
    Err(error)
}

#[cold]
fn unencoded<T>(error: encoder::Error, limit: u64) -> Box<EncodeError> {
    let name = type_name::<T>();
    Box::new(match error {
        encoder::Error::TooLong => EncodeError::TooLarge { limit },
        encoder::Error::UnknownLength => EncodeError::Refused(format!(
            "cannot encode `{name}`: a sequence or map whose length is not known in advance \
             (#[serde(flatten)] makes one); {ADVICE}"
        )),
        encoder::Error::Refused => {
            EncodeError::Refused(format!("cannot encode `{name}`: {}", refusal::take()))
        }
    })
}

#[cold]
fn encode_panicked<T>(payload: Box<dyn Any + Send>) -> Box<EncodeError> {
    let name = type_name::<T>();
    let message = panic_message(payload);
    Box::new(EncodeError::Refused(format!(
        "cannot encode `{name}`: its Serialize panicked: {message}"
    )))
}

/// A value's bytes as they came: in one piece, or in two where the second was kept apart.
#[derive(Debug)]
pub(crate) struct Encoded<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) tail: Option<Vec<u8>>,
}

impl<'a> From<&'a [u8]> for Encoded<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, tail: None }
    }
}

/// Reads a value that fills its bytes, and gives it the second piece as it is where that is a byte string or a text.
pub(crate) fn decode_encoded<T: DeserializeOwned>(encoded: Encoded<'_>) -> Result<T, String> {
    let Encoded { bytes, tail } = encoded;
    let Some(tail) = tail else {
        return decode(bytes);
    };
    let tail = match hand_over(bytes, tail) {
        Ok(value) => return Ok(value),
        Err(tail) => Tail::new(tail),
    };
    let length = bytes.len() + tail.len();
    let refused = match decode_from(
        postcard::Deserializer::from_flavor(tail.behind(bytes)),
        Some(&tail),
        length,
    ) {
        Err(_) if tail.is_refused() => tail.into_bytes(),
        decoded => return decoded,
    };
    // The types of the two sides see it as something else: bytes may be read as a sequence.
    let mut whole = buffers::take(length);
    whole.extend_from_slice(bytes);
    whole.extend_from_slice(&refused);
    let decoded = decode(&whole);
    buffers::give(whole);
    decoded
}

/// The value that is the second piece and nothing else, with that for its memory.
fn hand_over<T>(mut bytes: &[u8], tail: Vec<u8>) -> Result<T, Vec<u8>> {
    if take_varint(&mut bytes) != Some(tail.len() as u64) || !bytes.is_empty() {
        Err(tail)
    } else if is::<T, Bytes>() {
        unknown(buffers::lend(tail)).map_err(Vec::from)
    } else {
        unknown(tail)
    }
}

/// Reads a value that fills `bytes`: what is left over is an error, for it means that the types differ.
#[inline]
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    if let Some(value) = decode_bytes(bytes) {
        return Ok(value);
    }
    decode_from(postcard::Deserializer::from_bytes(bytes), None, bytes.len())
}

/// A `Vec<u8>` that fills `bytes`, which serde gives byte by byte. `None` for other types, and where something is wrong.
#[inline]
fn decode_bytes<T>(mut bytes: &[u8]) -> Option<T> {
    if !is::<T, Vec<u8>>() {
        return None;
    }
    let length = take_varint(&mut bytes)?;
    if length != bytes.len() as u64 {
        return None;
    }
    let mut value = Vec::with_capacity(bytes.len());
    pages::prefer_huge(&mut value);
    value.extend_from_slice(bytes);
    unknown(value).ok()
}

#[inline]
fn decode_from<'de, T, F>(
    mut deserializer: postcard::Deserializer<'de, F>,
    tail: Option<&Tail>,
    length: usize,
) -> Result<T, String>
where
    T: DeserializeOwned,
    F: postcard::de_flavors::Flavor<'de, Remainder = &'de [u8]>,
{
    let too_deep = Cell::new(false);
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let bounded = Bounded::new(&mut deserializer, Depth::new(&too_deep, tail));
        let value = pass_on(T::deserialize(bounded))?;
        Ok((
            value,
            deserializer.finalize()?.len() + tail.map_or(0, Tail::left_over),
        ))
    }));
    match decoded {
        Ok(Ok((value, 0))) => Ok(value),
        Ok(Ok((value, rest))) => {
            // The value's Drop is the user's code, which may panic like the rest of it.
            drop_quietly(value);
            Err(left_over::<T>(rest, length))
        }
        Ok(Err(error)) => Err(undecoded::<T>(error, too_deep.get())),
        Err(payload) => Err(decode_panicked::<T>(payload)),
    }
}

#[cold]
fn left_over<T>(rest: usize, length: usize) -> String {
    let name = type_name::<T>();
    format!("cannot decode `{name}`: {rest} of {length} bytes are left over; {ADVICE}")
}

#[cold]
fn undecoded<T>(error: postcard::Error, is_too_deep: bool) -> String {
    let name = type_name::<T>();
    if is_too_deep {
        return format!("cannot decode `{name}`: it nests deeper than {DEEPEST} levels");
    }
    match error {
        postcard::Error::SerdeDeCustom => format!("cannot decode `{name}`: {}", refusal::take()),
        postcard::Error::WontImplement => format!("cannot decode `{name}`; {ADVICE}"),
        error => format!("cannot decode `{name}`: {error}; {ADVICE}"),
    }
}

#[cold]
fn decode_panicked<T>(payload: Box<dyn Any + Send>) -> String {
    let name = type_name::<T>();
    let message = panic_message(payload);
    format!("cannot decode `{name}`: its Deserialize panicked: {message}")
}

/// A message of this crate's own to bytes.
pub(crate) fn message_bytes<T: Serialize>(value: &T, bytes: &mut Vec<u8>) {
    // Only plain structs and enums without limits come here, which postcard always takes.
    let encoded = encode(value, bytes, u64::MAX);
    debug_assert_eq!(encoded, Ok(()));
}

/// What is kept of a panic's message, in bytes.
const LONGEST_MESSAGE: usize = 256 * 1024;

/// The text of a panic's payload.
pub(crate) fn panic_message(payload: Box<dyn Any + Send>) -> String {
    let mut message = match payload.downcast_ref::<&'static str>() {
        Some(text) => (*text).to_owned(),
        None => match payload.downcast_ref::<String>() {
            Some(text) => text.clone(),
            None => "<a panic payload that is not text>".to_owned(),
        },
    };
    drop_quietly(payload);
    truncate(&mut message, LONGEST_MESSAGE);
    message
}

/// Cuts a text that is longer than `length` bytes.
pub(crate) fn truncate(text: &mut String, length: usize) {
    if text.len() > length {
        let end = (0..=length).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push_str(" [cut]");
    }
}

/// Drops a value whose `Drop` may panic.
pub(crate) fn drop_quietly<T>(value: T) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // A payload that panics when dropped again is not worth a second try.
        #[expect(clippy::mem_forget, reason = "dropping it may panic once more")]
        std::mem::forget(payload);
    }
}

/// Appends a record: `length * 2 + failed` as a varint, then what `write` appends.
///
/// Elements of a chunk carry their lengths so that one which does not decode costs only itself.
#[inline]
pub(crate) fn push_record<E>(
    bytes: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<bool, E>,
) -> Result<(), E> {
    let start = bytes.len();
    bytes.push(0);
    match write(bytes) {
        Ok(failed) => {
            let length = bytes.len() - start - 1;
            let tag = (length as u64) << 1 | u64::from(failed);
            if tag < 0x80 {
                bytes[start] = tag as u8;
            } else {
                let mut varint = [0; 10];
                let n = put_varint(tag, &mut varint);
                bytes.splice(start..=start, varint[..n].iter().copied());
            }
            Ok(())
        }
        Err(error) => {
            bytes.truncate(start);
            Err(error)
        }
    }
}

/// Takes a record from the front of `bytes`: whether it says of a failure, and its content.
#[inline]
pub(crate) fn take_record<'a>(bytes: &mut &'a [u8]) -> Option<(bool, &'a [u8])> {
    let (&first, mut rest) = bytes.split_first()?;
    let tag = if first < 0x80 {
        u64::from(first)
    } else {
        rest = bytes;
        take_varint(&mut rest)?
    };
    let length = usize::try_from(tag >> 1).ok()?;
    let (content, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some((tag & 1 == 1, content))
}

/// Takes a `u32` from the front of `bytes`.
pub(crate) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

#[inline]
pub(super) fn put_varint(mut value: u64, out: &mut [u8; 10]) -> usize {
    let mut n = 0;
    while value >= 0x80 {
        out[n] = value as u8 | 0x80;
        value >>= 7;
        n += 1;
    }
    out[n] = value as u8;
    n + 1
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_come_back_as_they_went(records in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..400)), 0..20)) {
            let mut bytes = Vec::new();
            for (failed, content) in &records {
                push_record(&mut bytes, |out| { out.extend_from_slice(content); Ok::<_, ()>(*failed) }).unwrap();
            }
            let mut rest = &bytes[..];
            for (failed, content) in &records {
                prop_assert_eq!(take_record(&mut rest), Some((*failed, &content[..])));
            }
            prop_assert_eq!(take_record(&mut rest), None);
        }

        #[test]
        fn random_bytes_are_never_more_than_they_are(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut rest = &bytes[..];
            while take_record(&mut rest).is_some() {}
        }
    }

    /// A value that asks for a number and takes it for a refusal of its own, then goes on with a text.
    #[derive(Debug)]
    struct Swallows;

    impl<'de> serde::Deserialize<'de> for Swallows {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let swallowed: D::Error = serde::de::Error::custom("nobody is to hear this");
            assert!(swallowed.to_string().contains("nobody"));
            String::deserialize(deserializer)
                .map(|_| Self)
                .map_err(|error| serde::de::Error::custom(format!("in a text: {error}")))
        }
    }

    #[test]
    fn an_error_says_what_its_own_value_has_said() {
        let tail = vec![0xff; SHORTEST_TAIL];
        let mut bytes = Vec::new();
        put_length(tail.len(), &mut bytes, u64::MAX).unwrap();
        let encoded = || Encoded {
            bytes: &bytes,
            tail: Some(tail.clone()),
        };
        for error in [
            decode_encoded::<Swallows>(encoded()).unwrap_err(),
            decode_encoded::<String>(encoded()).unwrap_err(),
        ] {
            assert!(
                error.contains("invalid utf-8") && !error.contains("nobody"),
                "{error}"
            );
        }
    }

    #[test]
    fn left_over_bytes_are_an_error() {
        let mut bytes = Vec::new();
        encode(&(7_u64, 1_u8), &mut bytes, 100).unwrap();
        assert!(decode::<u16>(&bytes).unwrap_err().contains("left over"));
        assert_eq!(decode::<(u64, u8)>(&bytes), Ok((7, 1)));
    }

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    enum Tree {
        Leaf,
        Branch { child: Option<Box<Tree>> },
    }

    fn tree(levels: usize) -> Tree {
        (0..levels).fold(Tree::Leaf, |child, _| Tree::Branch {
            child: Some(Box::new(child)),
        })
    }

    #[test]
    fn a_value_that_nests_too_deep_is_an_error() {
        let mut bytes = Vec::new();
        encode(&tree(DEEPEST / 2 - 1), &mut bytes, u64::MAX).unwrap();
        assert!(decode::<Tree>(&bytes) == Ok(tree(DEEPEST / 2 - 1)));
        let bytes = [1; 400_000];
        assert!(
            decode::<Tree>(&bytes)
                .unwrap_err()
                .contains("deeper than 512 levels")
        );
    }

    #[test]
    fn every_shape_survives_the_bound() {
        type Shapes = (
            Option<u8>,
            (),
            Vec<(String, char)>,
            std::collections::BTreeMap<u8, i64>,
            Result<f32, bool>,
            [u16; 3],
        );
        let value: Shapes = (
            Some(1),
            (),
            vec![("a".into(), 'b')],
            [(1, -2), (3, -4)].into(),
            Err(true),
            [1, 2, 65535],
        );
        let mut bytes = Vec::new();
        encode(&value, &mut bytes, u64::MAX).unwrap();
        assert_eq!(decode::<Shapes>(&bytes), Ok(value));
    }

    /// The bytes of a value that is given away.
    fn given<T: Serialize>(value: T, limit: u64) -> Result<Vec<u8>, Box<EncodeError>> {
        let mut bytes = Vec::new();
        match encode_with_ending(value, &mut bytes, limit)? {
            Ending::Apart(tail) => bytes.extend_from_slice(&tail),
            Ending::Within(at) => assert!(at <= bytes.len()),
        }
        Ok(bytes)
    }

    #[test]
    fn bytes_that_are_not_taken_one_by_one_look_the_same() {
        for length in [
            0,
            1,
            127,
            128,
            SHORTEST_TAIL - 1,
            SHORTEST_TAIL,
            SHORTEST_TAIL + 1,
        ] {
            let value = vec![b'a'; length];
            let expected = postcard::to_stdvec(&value).unwrap();
            let size = expected.len() as u64;
            let text = String::from_utf8(value.clone()).unwrap();
            assert!(given(value.clone(), size).as_ref() == Ok(&expected));
            assert!(given(text, size).as_ref() == Ok(&expected));
            assert!(given(Bytes::from(value.clone()), size).as_ref() == Ok(&expected));
            assert_eq!(
                given(value.clone(), size - 1),
                Err(Box::new(EncodeError::TooLarge { limit: size - 1 }))
            );
            let mut bytes = vec![9];
            encode(&value, &mut bytes, size).unwrap();
            assert!(bytes[1..] == expected);
            assert!(decode::<Vec<u8>>(&expected).as_ref() == Ok(&value));
            let (front, tail) = expected.split_at(expected.len() - length);
            let cut = || Encoded {
                bytes: front,
                tail: Some(tail.to_vec()),
            };
            assert!(decode_encoded::<Vec<u8>>(cut()).as_ref() == Ok(&value));
            assert!(decode_encoded::<Bytes>(cut()).is_ok_and(|bytes| bytes == value));
            assert!(decode_encoded::<Vec<i8>>(cut()).is_ok_and(|bytes| bytes.len() == length));
        }
        assert!(decode::<Vec<u8>>(&[2, 1]).is_err());
        assert!(
            decode::<Vec<u8>>(&[2, 1, 2, 3])
                .unwrap_err()
                .contains("left over")
        );
    }

    #[test]
    fn large_bytes_are_handed_on_as_they_are() {
        let value = Bytes::from(vec![7; SHORTEST_TAIL]);
        let place = value.as_ptr();
        let is_in_place = |ending| matches!(ending, Ok(Ending::Apart(tail)) if tail.as_ptr() == place);
        assert!(is_in_place(encode_kept(&value, &mut Vec::new(), u64::MAX)));
        assert!(is_in_place(encode_with_ending(value, &mut Vec::new(), u64::MAX)));
    }

    #[test]
    fn a_value_over_the_limit_leaves_nothing_behind() {
        let mut bytes = vec![1, 2];
        assert_eq!(
            encode(&"four", &mut bytes, 4),
            Err(Box::new(EncodeError::TooLarge { limit: 4 }))
        );
        assert_eq!(bytes, [1, 2]);
        assert_eq!(encode(&"four", &mut bytes, 5), Ok(()));
    }
}
