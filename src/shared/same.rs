//! Values of generic types that are one of a few types after all.
//!
//! serde shows a `Vec<u8>` byte by byte, and the bytes of a [`Bytes`](bytes::Bytes) as a slice that must be copied. Who
//! has such a value, and not only a type that can be serialised, can hand its memory on.

#![expect(
    unsafe_code,
    reason = "a value is taken for one of another type, which is looked at first"
)]

use std::any::TypeId;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, transmute, transmute_copy};

/// Whether `T` is `U`. Lifetimes in `T` do not count, and `U` has none.
#[inline]
pub(crate) fn is<T, U: 'static>() -> bool {
    trait Typed {
        fn id(&self) -> TypeId
        where
            Self: 'static;
    }
    impl<T> Typed for PhantomData<T> {
        fn id(&self) -> TypeId
        where
            Self: 'static,
        {
            TypeId::of::<T>()
        }
    }
    let phantom = PhantomData::<T>;
    // SAFETY: only the lifetime of a type is made longer of which there is no value: nothing outlives anything.
    let typed = unsafe { transmute::<&(dyn Typed + '_), &(dyn Typed + 'static)>(&phantom) };
    typed.id() == TypeId::of::<U>()
}

/// `value` as what it is, or as it was.
#[inline]
pub(crate) fn known<T, U: 'static>(value: T) -> Result<U, T> {
    if !is::<T, U>() {
        return Err(value);
    }
    let value = ManuallyDrop::new(value);
    // SAFETY: `T` is `U`, and the value is not used again where it was.
    Ok(unsafe { transmute_copy::<ManuallyDrop<T>, U>(&value) })
}

/// The other way: a `U` for a `T`.
#[inline]
pub(crate) fn unknown<U: 'static, T>(value: U) -> Result<T, U> {
    if !is::<T, U>() {
        return Err(value);
    }
    let value = ManuallyDrop::new(value);
    // SAFETY: as above.
    Ok(unsafe { transmute_copy::<ManuallyDrop<U>, T>(&value) })
}

/// `value` as what it is.
#[inline]
pub(crate) fn known_ref<T, U: 'static>(value: &T) -> Option<&U> {
    if !is::<T, U>() {
        return None;
    }
    // SAFETY: `T` is `U`, and what is behind the reference is lent for as long.
    Some(unsafe { &*std::ptr::from_ref(value).cast::<U>() })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[test]
    fn a_type_is_itself_and_no_other() {
        assert_eq!(known::<_, String>("text".to_owned()), Ok("text".to_owned()));
        assert_eq!(known::<_, Vec<u8>>("text".to_owned()), Err("text".to_owned()));
        assert_eq!(known::<_, Vec<u8>>(vec![1_i8]), Err(vec![1_i8]));
        assert_eq!(unknown::<_, Vec<u8>>(vec![1_u8]), Ok(vec![1_u8]));
        assert_eq!(unknown::<_, String>(vec![1_u8]), Err(vec![1_u8]));
        assert_eq!(known_ref::<_, u64>(&7_u64), Some(&7));
        assert_eq!(known_ref::<_, i64>(&7_u64), None);
    }

    #[test]
    fn a_type_with_a_lifetime_is_none_without() {
        fn is_string<T>(value: T) -> bool {
            known::<_, String>(value).is_ok()
        }
        let text = "text".to_owned();
        assert!(!is_string(Cow::Borrowed(&*text)));
        assert!(!is_string(&*text));
        assert!(is_string(text));
    }
}
