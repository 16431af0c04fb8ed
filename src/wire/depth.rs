//! Decoding with a bound on nesting, and with the value's tail given to who wants it.
//!
//! Decoding recurses as deep as the bytes say. Without a bound, a few hundred kilobytes from a worker could overflow
//! the parent's stack, which no process survives. Everything but the nesting is passed on as it is, and what a value has
//! to say against its bytes is [kept](super::refusal), for postcard drops it.

use std::cell::Cell;
use std::fmt::{self, Display};

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::refusal;
use super::tail::Tail;

/// Levels that a value may have. An enum's variant with fields is two; an `Option` is none, for no type can nest in
/// itself by options alone.
pub(crate) const DEEPEST: usize = 512;

/// How many levels are left, whether more were asked for, and what ends the value.
#[derive(Clone, Copy)]
pub(crate) struct Depth<'a> {
    left: usize,
    exceeded: &'a Cell<bool>,
    tail: Option<&'a Tail>,
}

impl<'a> Depth<'a> {
    pub(super) fn new(exceeded: &'a Cell<bool>, tail: Option<&'a Tail>) -> Self {
        Self {
            left: DEEPEST,
            exceeded,
            tail,
        }
    }

    /// For what may not be given the tail.
    #[inline]
    fn without_tail(self) -> Self {
        Self { tail: None, ..self }
    }

    #[inline]
    fn below<E: Error>(self) -> Result<Self, E> {
        match self.left.checked_sub(1) {
            Some(left) => Ok(Self { left, ..self }),
            None => {
                self.exceeded.set(true);
                Err(E::custom("nested too deep"))
            }
        }
    }
}

/// The error of what is bounded: another's, and what was said is kept.
#[derive(Debug)]
pub(crate) struct Told<E>(E);

impl<E: Error> Display for Told<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        // One that says no more than any other that a value has made.
        if text == E::custom("").to_string() {
            f.write_str(&refusal::kept())
        } else {
            f.write_str(&text)
        }
    }
}

impl<E: Error> std::error::Error for Told<E> {}

impl<E: Error> Error for Told<E> {
    #[cold]
    fn custom<T: Display>(text: T) -> Self {
        refusal::keep(text);
        Self(E::custom(""))
    }
}

/// What an inner value has told, for who knows nothing of that.
#[inline]
pub(crate) fn pass_on<T, E>(result: Result<T, Told<E>>) -> Result<T, E> {
    result.map_err(|Told(error)| error)
}

/// A deserializer, visitor, access or seed whose values are bounded in depth.
pub(crate) struct Bounded<'a, T> {
    inner: T,
    depth: Depth<'a>,
}

impl<'a, T> Bounded<'a, T> {
    pub(crate) fn new(inner: T, depth: Depth<'a>) -> Self {
        Self { inner, depth }
    }
}

/// Methods whose visitor is given a plain value.
macro_rules! plain {
    ($($method:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            self.inner.$method(Bounded::new(visitor, self.depth.without_tail())).map_err(Told)
        }
    )*};
}

/// Methods whose visitor may be given the tail.
macro_rules! in_one_piece {
    ($($method:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            if let Some(tail) = self.depth.tail {
                tail.ask();
            }
            self.inner.$method(Bounded::new(visitor, self.depth)).map_err(Told)
        }
    )*};
}

/// Methods whose visitor is given values inside the value.
macro_rules! nesting {
    ($($method:ident($($name:ident: $type:ty),*))*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, Self::Error> {
            self.inner.$method($($name,)* Bounded::new(visitor, self.depth)).map_err(Told)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Bounded<'_, D> {
    type Error = Told<D::Error>;

    plain! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32
        deserialize_f64 deserialize_char deserialize_unit deserialize_identifier
        // Whoever asks for these may take nothing but what is lent.
        deserialize_str deserialize_bytes
    }

    in_one_piece! { deserialize_string deserialize_byte_buf }

    nesting! {
        deserialize_any()
        deserialize_ignored_any()
        deserialize_option()
        deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str)
        deserialize_seq()
        deserialize_tuple(len: usize)
        deserialize_tuple_struct(name: &'static str, len: usize)
        deserialize_map()
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

fn text<E: Error>(bytes: Vec<u8>) -> Result<String, E> {
    pass_on(String::from_utf8(bytes).map_err(Told::custom))
}

macro_rules! visit_plain {
    ($($method:ident: $type:ty)*) => {$(
        #[inline]
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            pass_on(self.inner.$method(value))
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Bounded<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit_plain! {
        visit_bool: bool visit_i8: i8 visit_i16: i16 visit_i32: i32 visit_i64: i64 visit_i128: i128
        visit_u8: u8 visit_u16: u16 visit_u32: u32 visit_u64: u64 visit_u128: u128 visit_f32: f32
        visit_f64: f64 visit_char: char visit_string: String visit_byte_buf: Vec<u8>
    }

    #[inline]
    fn visit_str<E: Error>(self, value: &str) -> Result<V::Value, E> {
        match self.depth.tail.and_then(|tail| tail.take(value.as_bytes())) {
            Some(tail) => pass_on(self.inner.visit_string(text(tail)?)),
            None => pass_on(self.inner.visit_str(value)),
        }
    }

    #[inline]
    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<V::Value, E> {
        match self.depth.tail.and_then(|tail| tail.take(value.as_bytes())) {
            Some(tail) => pass_on(self.inner.visit_string(text(tail)?)),
            None => pass_on(self.inner.visit_borrowed_str(value)),
        }
    }

    #[inline]
    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<V::Value, E> {
        match self.depth.tail.and_then(|tail| tail.take(value)) {
            Some(tail) => pass_on(self.inner.visit_byte_buf(tail)),
            None => pass_on(self.inner.visit_bytes(value)),
        }
    }

    #[inline]
    fn visit_borrowed_bytes<E: Error>(self, value: &'de [u8]) -> Result<V::Value, E> {
        match self.depth.tail.and_then(|tail| tail.take(value)) {
            Some(tail) => pass_on(self.inner.visit_byte_buf(tail)),
            None => pass_on(self.inner.visit_borrowed_bytes(value)),
        }
    }

    #[inline]
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        pass_on(self.inner.visit_none())
    }

    #[inline]
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        pass_on(self.inner.visit_unit())
    }

    #[inline]
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        pass_on(self.inner.visit_some(Bounded::new(deserializer, self.depth)))
    }

    #[inline]
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        pass_on(
            self.inner
                .visit_newtype_struct(Bounded::new(deserializer, self.depth.below()?)),
        )
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        pass_on(self.inner.visit_seq(Bounded::new(access, self.depth.below()?)))
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        pass_on(self.inner.visit_map(Bounded::new(access, self.depth.below()?)))
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        pass_on(self.inner.visit_enum(Bounded::new(access, self.depth.below()?)))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Bounded<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        pass_on(self.inner.deserialize(Bounded::new(deserializer, self.depth)))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Bounded<'_, A> {
    type Error = Told<A::Error>;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Self::Error> {
        self.inner
            .next_element_seed(Bounded::new(seed, self.depth))
            .map_err(Told)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Bounded<'_, A> {
    type Error = Told<A::Error>;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Self::Error> {
        self.inner
            .next_key_seed(Bounded::new(seed, self.depth))
            .map_err(Told)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Self::Error> {
        self.inner
            .next_value_seed(Bounded::new(seed, self.depth))
            .map_err(Told)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'a, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Bounded<'a, A> {
    type Error = Told<A::Error>;
    type Variant = Bounded<'a, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), Self::Error> {
        let (value, variant) = self
            .inner
            .variant_seed(Bounded::new(seed, self.depth))
            .map_err(Told)?;
        Ok((value, Bounded::new(variant, self.depth)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Bounded<'_, A> {
    type Error = Told<A::Error>;

    #[inline]
    fn unit_variant(self) -> Result<(), Self::Error> {
        self.inner.unit_variant().map_err(Told)
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Self::Error> {
        self.inner
            .newtype_variant_seed(Bounded::new(seed, self.depth))
            .map_err(Told)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Self::Error> {
        self.inner
            .tuple_variant(len, Bounded::new(visitor, self.depth))
            .map_err(Told)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.inner
            .struct_variant(fields, Bounded::new(visitor, self.depth))
            .map_err(Told)
    }
}
