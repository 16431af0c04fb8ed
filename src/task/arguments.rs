//! Functions of several arguments, called with a tuple.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::entry;

/// Functions that [`starmap`](crate::Pool::starmap) calls with a tuple's fields as their arguments.
///
/// Implemented for functions and non-capturing closures of one to eight arguments.
pub trait StarFn<A, R>: Copy + 'static {
    #[doc(hidden)]
    fn row(&self) -> Row;
}

/// A row of the task table.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Row(pub(crate) u32);

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! star_fn {
    ($($argument:ident)+) => {
        impl<F, R, $($argument),+> StarFn<($($argument,)+), R> for F
        where
            F: Fn($($argument),+) -> R + Copy + 'static,
            R: Serialize,
            $($argument: DeserializeOwned,)+
        {
            #[expect(non_snake_case, reason = "the type parameters' names serve as the fields' names")]
            fn row(&self) -> Row {
                // The closure captures a function without bytes, and so has none itself.
                let function = *self;
                Row(entry::blocking::<F, _, _, _>(&move |($($argument,)+): ($($argument,)+)| function($($argument),+)))
            }
        }
    };
}

star_fn!(A);
star_fn!(A B);
star_fn!(A B C);
star_fn!(A B C D);
star_fn!(A B C D E);
star_fn!(A B C D E G);
star_fn!(A B C D E G H);
star_fn!(A B C D E G H I);
