//! What travels with a task beside its argument.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The message in front of a task that has company.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    pub(crate) trace: Option<TraceContext>,
    /// How verbose the spans and events of the task may be, where the parent wants any.
    pub(crate) verbosity: Option<u8>,
}

/// A [W3C trace context](https://www.w3.org/TR/trace-context/): where in a distributed trace something happens.
///
/// It travels with a task: [`Task::trace_context`](crate::Task::trace_context) or
/// [`PoolBuilder::trace_context`](crate::PoolBuilder::trace_context) gives it along,
/// [`worker::trace_context`](crate::worker::trace_context) finds it there.
///
/// # Examples
///
/// ```
/// use procession::{InvalidTraceContext, TraceContext};
///
/// let context = TraceContext::new("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")?
///     .with_state("congo=t61rcWkgMzE")?;
/// assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert_eq!(context.parent_id(), "00f067aa0ba902b7");
/// assert!(context.is_sampled());
/// assert_eq!(TraceContext::new("00-xyz"), Err(InvalidTraceContext::Shape));
/// # Ok::<_, InvalidTraceContext>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TraceContext {
    parent: String,
    state: Option<String>,
}

/// Why a text is no [`TraceContext`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InvalidTraceContext {
    /// It is not `version-traceid-parentid-flags` with 2, 32, 16 and 2 lower-case hexadecimal digits; of a later
    /// version than 00, more may follow behind another dash.
    Shape,
    /// The version is ff, which is none.
    Version,
    /// The trace id is all zero.
    TraceId,
    /// The parent id is all zero.
    ParentId,
    /// The `tracestate` has more than 32 members.
    StateLength,
    /// A member of the `tracestate`, counted from 0, is no `key=value` as the specification has it.
    StateMember(usize),
    /// A key of the `tracestate` comes a second time, in the member counted from 0.
    StateDuplicate(usize),
}

impl fmt::Display for InvalidTraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape => f.write_str("the traceparent is not version-traceid-parentid-flags"),
            Self::Version => f.write_str("the traceparent is of version ff, which is invalid"),
            Self::TraceId => f.write_str("the trace id of the traceparent is zero"),
            Self::ParentId => f.write_str("the parent id of the traceparent is zero"),
            Self::StateLength => f.write_str("the tracestate has more than 32 members"),
            Self::StateMember(index) => write!(f, "member {index} of the tracestate is not key=value"),
            Self::StateDuplicate(index) => write!(f, "member {index} of the tracestate repeats a key"),
        }
    }
}

impl std::error::Error for InvalidTraceContext {}

/// Where the fields of a traceparent end.
const VERSION: usize = 2;
const TRACE_ID: usize = VERSION + 1 + 32;
const PARENT_ID: usize = TRACE_ID + 1 + 16;
const FLAGS: usize = PARENT_ID + 1 + 2;

const MOST_MEMBERS: usize = 32;
const LONGEST_KEY: usize = 256;
const LONGEST_VALUE: usize = 256;

impl TraceContext {
    /// The context of a `traceparent` header.
    ///
    /// # Errors
    ///
    /// [`InvalidTraceContext`] where it is not as the specification says.
    pub fn new(traceparent: impl Into<String>) -> Result<Self, InvalidTraceContext> {
        let parent = traceparent.into();
        let bytes = parent.as_bytes();
        let dashes = [VERSION, TRACE_ID, PARENT_ID];
        let is_well_formed = bytes.iter().take(FLAGS).enumerate().all(|(at, byte)| {
            if dashes.contains(&at) {
                *byte == b'-'
            } else {
                matches!(byte, b'0'..=b'9' | b'a'..=b'f')
            }
        });
        // What later versions put behind the flags is theirs, and passed on as it is.
        let is_long_enough = match bytes.get(FLAGS) {
            None => bytes.len() == FLAGS,
            Some(byte) => !parent.starts_with("00") && *byte == b'-' && parent.is_ascii(),
        };
        if !is_well_formed || !is_long_enough {
            return Err(InvalidTraceContext::Shape);
        }
        let context = Self { parent, state: None };
        let is_zero = |id: &str| id.bytes().all(|byte| byte == b'0');
        if context.parent.starts_with("ff") {
            Err(InvalidTraceContext::Version)
        } else if is_zero(context.trace_id()) {
            Err(InvalidTraceContext::TraceId)
        } else if is_zero(context.parent_id()) {
            Err(InvalidTraceContext::ParentId)
        } else {
            Ok(context)
        }
    }

    /// The same with a `tracestate` header. An empty one is none.
    ///
    /// # Errors
    ///
    /// [`InvalidTraceContext`] where it is not as the specification says.
    pub fn with_state(mut self, tracestate: impl Into<String>) -> Result<Self, InvalidTraceContext> {
        let state = tracestate.into();
        let mut keys = Vec::new();
        for (index, member) in state.split(',').enumerate() {
            let member = member.trim_matches([' ', '\t']);
            // The specification allows empty ones.
            if member.is_empty() {
                continue;
            }
            let (key, value) = member
                .split_once('=')
                .ok_or(InvalidTraceContext::StateMember(index))?;
            if !is_key(key) || !is_value(value) {
                return Err(InvalidTraceContext::StateMember(index));
            }
            if keys.contains(&key) {
                return Err(InvalidTraceContext::StateDuplicate(index));
            }
            keys.push(key);
        }
        if keys.len() > MOST_MEMBERS {
            return Err(InvalidTraceContext::StateLength);
        }
        self.state = (!keys.is_empty()).then_some(state);
        Ok(self)
    }

    /// The `traceparent` header.
    #[must_use]
    pub fn traceparent(&self) -> &str {
        &self.parent
    }

    /// The `tracestate` header, if there is one.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The trace, as 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        &self.parent[VERSION + 1..TRACE_ID]
    }

    /// The span that what comes is a part of, as 16 hexadecimal digits.
    #[must_use]
    pub fn parent_id(&self) -> &str {
        &self.parent[TRACE_ID + 1..PARENT_ID]
    }

    /// The flags.
    #[must_use]
    pub fn flags(&self) -> u8 {
        u8::from_str_radix(&self.parent[PARENT_ID + 1..FLAGS], 16).unwrap_or(0)
    }

    /// Whether the caller may have recorded the trace: the lowest flag.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags() & 1 == 1
    }

    /// Whether it is as it would have been made here, for one that has come over the wire.
    pub(crate) fn is_valid(&self) -> bool {
        match (Self::new(self.parent.as_str()), &self.state) {
            (Ok(_), None) => true,
            (Ok(context), Some(state)) => context.with_state(state.as_str()).is_ok(),
            (Err(_), _) => false,
        }
    }
}

fn is_key(key: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
    key.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
        && key.len() <= LONGEST_KEY
        && key.bytes().all(allowed)
        && key.bytes().filter(|&byte| byte == b'@').count() <= 1
        && !key.ends_with('@')
}

fn is_value(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= LONGEST_VALUE
        && value
            .bytes()
            .all(|byte| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_taken_apart() {
        let context = TraceContext::new(GOOD).unwrap();
        assert_eq!(context.traceparent(), GOOD);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.parent_id(), "00f067aa0ba902b7");
        assert_eq!((context.flags(), context.is_sampled()), (1, true));
        let later = format!("cc{}-what the future brings", &GOOD[2..]);
        assert_eq!(TraceContext::new(later.as_str()).unwrap().traceparent(), later);
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        use InvalidTraceContext::{ParentId, Shape, TraceId, Version};
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_parent = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        let version = format!("ff{}", &GOOD[2..]);
        let (upper, long) = (GOOD.to_uppercase(), format!("{GOOD}-00"));
        let longer = format!("cc{}.00", &GOOD[2..]);
        for (bad, why) in [
            ("", Shape),
            ("00", Shape),
            (&GOOD[..54], Shape),
            (&upper, Shape),
            (&long, Shape),
            (&longer, Shape),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01", Shape),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-00f067aa0ba902b7-01",
                Shape,
            ),
            (&version, Version),
            (&zero_trace, TraceId),
            (&zero_parent, ParentId),
        ] {
            assert_eq!(TraceContext::new(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn a_tracestate_is_checked() {
        use InvalidTraceContext::{StateDuplicate, StateLength, StateMember};
        let with = |state: &str| TraceContext::new(GOOD).unwrap().with_state(state);
        for good in [
            "a=1",
            "rojo=00f067aa0ba902b7, congo=t61 rcWkgMzE,",
            "0tenant@sys=x",
        ] {
            assert_eq!(with(good).unwrap().tracestate(), Some(good));
        }
        assert_eq!(with("").unwrap().tracestate(), None);
        for (bad, why) in [
            ("a", StateMember(0)),
            ("a=1,B=2", StateMember(1)),
            ("a=", StateMember(0)),
            ("a=b=c", StateMember(0)),
            ("a=\u{e9}", StateMember(0)),
            ("a=1,a=2", StateDuplicate(1)),
        ] {
            assert_eq!(with(bad), Err(why), "{bad}");
        }
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        assert_eq!(with(&many.join(",")), Err(StateLength));
        assert!(with(&many[..32].join(",")).is_ok());
        assert_eq!(with(&format!("a={}", "x".repeat(257))), Err(StateMember(0)));
    }
}
