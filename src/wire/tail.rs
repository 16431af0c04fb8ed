//! The byte string or text with which a value ends, handed over instead of copied.
//!
//! The receiver keeps it in memory of its own. postcard lends what it finds to the visitor of a value; here it finds
//! nothing in the place of the tail, and [`Bounded`](super::depth::Bounded) gives the visitor the whole of it.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use postcard::de_flavors::Flavor;
use postcard::{Error, Result};

/// Where an encoded value's tail lies.
#[derive(Debug)]
pub(crate) enum Ending {
    /// With the rest, from here on; behind it where there is none.
    Within(usize),
    /// In memory of its own, as the value had it.
    Apart(Bytes),
}

/// How far the tail of a value is on its way to the visitor that wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// There is none, or it is not asked for.
    #[default]
    Waiting,
    /// The next bytes that are taken are those of a byte string or a text.
    Asked,
    /// It was asked for, and the visitor is to have it.
    Given,
    Taken,
    /// Some of it was wanted in another way.
    Refused,
}

/// The tail of the value that is being decoded, if it has one.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: RefCell<Vec<u8>>,
    length: usize,
    state: Cell<State>,
}

impl Tail {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self {
            length: bytes.len(),
            bytes: RefCell::new(bytes),
            state: Cell::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// The input of which this is the end.
    pub(super) fn behind<'de>(&'de self, bytes: &'de [u8]) -> Behind<'de> {
        Behind { bytes, tail: self }
    }

    /// What follows is a byte string or a text.
    pub(super) fn ask(&self) {
        if self.length > 0 && self.state.get() == State::Waiting {
            self.state.set(State::Asked);
        }
    }

    /// The tail, where `found` is what stands in its place.
    pub(super) fn take(&self, found: &[u8]) -> Option<Vec<u8>> {
        if !found.is_empty() || self.state.get() != State::Given {
            return None;
        }
        self.state.set(State::Taken);
        Some(self.bytes.take())
    }

    /// Bytes of it that the value did not want.
    pub(super) fn left_over(&self) -> usize {
        match self.state.get() {
            State::Taken => 0,
            _ => self.length,
        }
    }

    pub(super) fn is_refused(&self) -> bool {
        self.state.get() == State::Refused
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner()
    }
}

/// Bytes with a tail behind them.
#[derive(Debug)]
pub(super) struct Behind<'de> {
    bytes: &'de [u8],
    tail: &'de Tail,
}

impl<'de> Behind<'de> {
    /// More is wanted than there is in front of the tail.
    fn refuse<T>(&self) -> Result<T> {
        if self.tail.state.get() != State::Taken {
            self.tail.state.set(State::Refused);
        }
        Err(Error::DeserializeUnexpectedEnd)
    }
}

impl<'de> Flavor<'de> for Behind<'de> {
    type Remainder = &'de [u8];
    type Source = &'de [u8];

    fn pop(&mut self) -> Result<u8> {
        match self.bytes.split_first() {
            Some((&first, rest)) => {
                self.bytes = rest;
                Ok(first)
            }
            None => self.refuse(),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.bytes.len() + self.tail.left_over())
    }

    fn try_take_n(&mut self, count: usize) -> Result<&'de [u8]> {
        let asked = self.tail.state.get() == State::Asked;
        if asked {
            self.tail.state.set(State::Waiting);
        }
        match self.bytes.split_at_checked(count) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None if asked && self.bytes.is_empty() && count == self.tail.length => {
                self.tail.state.set(State::Given);
                Ok(&[])
            }
            None => self.refuse(),
        }
    }

    fn finalize(self) -> Result<&'de [u8]> {
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::marker::PhantomData;

    use bytes::Bytes;
    use serde::de::{DeserializeOwned, Deserializer, Visitor};
    use serde::{Deserialize, Serialize};

    use super::super::codec::{Encoded, decode_encoded, encode_with_tail};

    /// Bytes or text that say where they lay when they were handed over.
    #[derive(Debug, PartialEq)]
    struct Place<T>(Option<usize>, PhantomData<T>);

    impl<'de> Deserialize<'de> for Place<Vec<u8>> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer
                .deserialize_byte_buf(Where)
                .map(|place| Self(place, PhantomData))
        }
    }

    impl<'de> Deserialize<'de> for Place<&'static [u8]> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer
                .deserialize_bytes(Where)
                .map(|place| Self(place, PhantomData))
        }
    }

    impl<'de> Deserialize<'de> for Place<String> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer
                .deserialize_string(Where)
                .map(|place| Self(place, PhantomData))
        }
    }

    impl<'de> Deserialize<'de> for Place<&'static str> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer
                .deserialize_str(Where)
                .map(|place| Self(place, PhantomData))
        }
    }

    struct Where;

    impl Visitor<'_> for Where {
        type Value = Option<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes or text")
        }

        fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Option<usize>, E> {
            Ok(Some(bytes.as_ptr().addr()))
        }

        fn visit_bytes<E>(self, _: &[u8]) -> Result<Option<usize>, E> {
            Ok(None)
        }

        fn visit_string<E>(self, text: String) -> Result<Option<usize>, E> {
            Ok(Some(text.as_ptr().addr()))
        }

        fn visit_str<E>(self, _: &str) -> Result<Option<usize>, E> {
            Ok(None)
        }
    }

    /// A value cut where its tail begins.
    fn cut(value: &impl Serialize) -> (Vec<u8>, Vec<u8>) {
        let mut bytes = Vec::new();
        let at = encode_with_tail(value, &mut bytes, u64::MAX).unwrap();
        let tail = bytes.split_off(at);
        (bytes, tail)
    }

    fn join<T: DeserializeOwned>((bytes, tail): &(Vec<u8>, Vec<u8>)) -> Result<T, String> {
        decode_encoded(Encoded {
            bytes,
            tail: Some(tail.clone()),
        })
    }

    fn returns<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(value: T, tail: usize) {
        let parts = cut(&value);
        assert_eq!(parts.1.len(), tail, "{value:?}");
        assert_eq!(join::<T>(&parts), Ok(value));
    }

    #[test]
    fn values_that_end_with_bytes_or_text_come_back() {
        let bytes = || Bytes::from(vec![7; 300]);
        returns(bytes(), 300);
        returns((1_u8, "text".to_owned(), bytes()), 300);
        returns(Some(Ok::<_, String>(bytes())), 300);
        returns(vec![bytes(), bytes()], 300);
        returns("\u{e4}".repeat(20), 40);
        returns(Some(vec![String::new(), "a".to_owned()]), 1);
        returns(Bytes::new(), 0);
        returns((Bytes::new(), Bytes::new()), 0);
        returns((bytes(), 1_u8), 0);
        returns((1_u64, 2.5_f64, [1_u8; 4]), 0);
        returns(vec![1.5_f64; 40], 0);
    }

    #[test]
    fn the_tail_itself_is_handed_over() {
        fn is_handed_over<T>(value: &impl Serialize)
        where
            Place<T>: DeserializeOwned,
        {
            let (bytes, tail) = cut(value);
            let place = Some(tail.as_ptr().addr());
            let encoded = Encoded {
                bytes: &bytes,
                tail: Some(tail),
            };
            assert_eq!(decode_encoded::<Place<T>>(encoded).unwrap().0, place);
        }
        is_handed_over::<Vec<u8>>(&Bytes::from(vec![7; 300]));
        is_handed_over::<String>(&"text");
    }

    #[test]
    fn who_asks_for_something_lent_is_lent_it() {
        let bytes = join::<Place<&[u8]>>(&cut(&Bytes::from(vec![7; 300])));
        assert_eq!(bytes.unwrap().0, None);
        assert_eq!(join::<Place<&str>>(&cut(&"text")).unwrap().0, None);

        /// Takes its text only as a part of the input.
        struct Lent(String);
        impl<'de> Deserialize<'de> for Lent {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <&str>::deserialize(deserializer).map(|text| Self(text.to_owned()))
            }
        }
        assert_eq!(join::<Lent>(&cut(&"text")).unwrap().0, "text");
    }

    #[test]
    fn other_types_see_other_values_in_the_same_bytes() {
        let bytes = Bytes::from(vec![65; 300]);
        let parts = cut(&(1_u8, bytes.clone()));
        assert_eq!(join::<(u8, Vec<u8>)>(&parts), Ok((1, bytes.to_vec())));
        assert_eq!(join::<(u8, Vec<i8>)>(&parts), Ok((1, vec![65; 300])));
        assert_eq!(join::<(u8, String)>(&parts), Ok((1, "A".repeat(300))));
        assert!(join::<(u8, Vec<(u8, u8)>)>(&parts).is_err());
        // What stands in front says more, or less, than there is.
        assert!(join::<(Bytes, Bytes)>(&(vec![2, 1], vec![2, 4, 4, 5, 6])).is_err());
        assert!(join::<Vec<u8>>(&(vec![2, 4], vec![1, 2, 3, 4])).is_err());
        assert_eq!(
            join::<(Vec<u8>, Vec<u8>)>(&(vec![2, 1, 2], vec![1, 9])),
            Ok((vec![1, 2], vec![9]))
        );
    }

    #[test]
    fn a_tail_that_nobody_wants_is_an_error() {
        let parts = (vec![1], vec![2, 3]);
        assert!(
            join::<u8>(&parts)
                .unwrap_err()
                .contains("2 of 3 bytes are left over")
        );
        assert!(join::<()>(&(vec![], vec![0; 5])).unwrap_err().contains("5 of 5"));
        assert!(join::<String>(&(vec![2], vec![0xff, 0xff])).is_err());
        // Numbers of as many bytes as the tail has are none of its business, and are read across the cut.
        assert_eq!(
            join::<(u8, f32)>(&(vec![1], 1.5_f32.to_le_bytes().to_vec())),
            Ok((1, 1.5))
        );
        assert_eq!(join::<Option<char>>(&(vec![1, 1], vec![b'a'])), Ok(Some('a')));
    }

    #[test]
    fn a_text_in_pieces_is_a_tail() {
        struct Pieces;
        impl fmt::Display for Pieces {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one")?;
                f.write_str("two")
            }
        }
        impl Serialize for Pieces {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        let parts = cut(&Pieces);
        assert_eq!(parts, (vec![6], b"onetwo".to_vec()));
        assert_eq!(join::<String>(&parts), Ok("onetwo".to_owned()));
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        enum Shape {
            Number(u64),
            Text(String),
            Bytes(Bytes),
            Pair(Bytes, Option<String>),
            Many(Vec<Bytes>),
            Named { number: f64, bytes: Bytes },
        }

        fn shapes() -> impl Strategy<Value = Shape> {
            let bytes = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
            prop_oneof![
                any::<u64>().prop_map(Shape::Number),
                ".{0,60}".prop_map(Shape::Text),
                bytes().prop_map(Shape::Bytes),
                (bytes(), proptest::option::of(".{0,60}")).prop_map(|(bytes, text)| Shape::Pair(bytes, text)),
                proptest::collection::vec(bytes(), 0..5).prop_map(Shape::Many),
                (-1e9..1e9, bytes()).prop_map(|(number, bytes)| Shape::Named { number, bytes }),
            ]
        }

        proptest! {
            #[test]
            fn a_value_comes_back_wherever_it_is_cut(shape in shapes(), at: prop::sample::Index) {
                let parts = cut(&shape);
                prop_assert_eq!(join::<Shape>(&parts), Ok(shape.clone()));
                let mut bytes = [parts.0, parts.1].concat();
                let tail = bytes.split_off(at.index(bytes.len() + 1));
                prop_assert_eq!(join::<Shape>(&(bytes, tail)), Ok(shape));
            }

            #[test]
            fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40), at: prop::sample::Index) {
                let mut bytes = bytes;
                let whole = super::super::super::codec::decode::<Shape>(&bytes);
                let tail = bytes.split_off(at.index(bytes.len() + 1));
                let parts = join::<Shape>(&(bytes, tail));
                prop_assert_eq!(format!("{:?}", parts.ok()), format!("{:?}", whole.ok()));
            }
        }
    }
}
