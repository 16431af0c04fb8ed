//! The bytes of a message: a few lie in place, more on the heap.
//!
//! Most tasks and results are short, and an allocation costs as much as all else that is done to them.

use std::fmt;
use std::ops::Deref;

/// So many bytes lie in place.
pub(crate) const HERE: usize = 30;

#[derive(Clone)]
pub(crate) enum Body {
    Here { length: u8, bytes: [u8; HERE] },
    Heap(Vec<u8>),
}

impl Body {
    /// A copy of a few bytes; `None` where they are too many.
    #[inline]
    pub(crate) fn small(from: &[u8]) -> Option<Self> {
        let mut bytes = [0; HERE];
        bytes.get_mut(..from.len())?.copy_from_slice(from);
        Some(Self::Here {
            length: from.len() as u8,
            bytes,
        })
    }

    pub(crate) fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Heap(bytes) => bytes,
            here @ Self::Here { .. } => here.to_vec(),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::Here {
            length: 0,
            bytes: [0; HERE],
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Heap(bytes)
    }
}

impl Deref for Body {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Here { length, bytes } => &bytes[..usize::from(*length)],
            Self::Heap(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_lies_in_place() {
        let bytes: Vec<u8> = (0..=HERE as u8).collect();
        for length in 0..=HERE {
            let body = Body::small(&bytes[..length]).unwrap();
            assert_eq!(*body, bytes[..length]);
            assert_eq!(body.into_vec(), bytes[..length]);
        }
        assert!(Body::small(&bytes).is_none());
        assert_eq!(*Body::from(bytes.clone()), bytes);
        assert_eq!(size_of::<Body>(), 32);
    }
}
