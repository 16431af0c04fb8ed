//! Values that cross, and values that cannot.

use std::io::{Read, Write};

use procession::{Fd, Json, Pool, TaskErrorKind};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::fuse::within;
use crate::scene::{pid, pids, pool, same};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(u32),
    Text(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    A { x: u8 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Outer {
    name: String,
    #[serde(flatten)]
    inner: Inner,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Inner {
    x: u8,
}

/// An error that names the type and helps on, and a pool that is as it was.
macro_rules! refused {
    ($pool:expr, $type:ty, $value:expr, $kinds:expr) => {{
        let before = pids(&$pool);
        let error = within($pool.apply(same::<$type>, $value)).await.unwrap_err();
        let text = error.to_string();
        assert!($kinds.contains(&error.kind()), "{text}");
        assert!(text.contains(std::any::type_name::<$type>()), "{text}");
        assert!(text.contains("procession::Json"), "{text}");
        assert_eq!(within($pool.apply(same::<u8>, 1)).await.unwrap(), 1);
        assert_eq!(pids(&$pool), before);
    }};
}

#[tokio::test]
async fn types_that_postcard_cannot_carry_fail_their_call_and_the_error_says_what_to_do() {
    use TaskErrorKind::{Decode, Encode};
    let pool = pool(1).await;
    refused!(pool, Value, json!({"a": [1, "b", null]}), [Encode, Decode]);
    refused!(pool, Untagged, Untagged::Text("t".to_owned()), [Encode, Decode]);
    refused!(pool, Untagged, Untagged::Number(1), [Encode, Decode]);
    refused!(pool, Tagged, Tagged::A { x: 1 }, [Encode, Decode]);
    let outer = Outer {
        name: "n".to_owned(),
        inner: Inner { x: 1 },
    };
    refused!(pool, Outer, outer, [Encode, Decode]);
}

#[tokio::test]
async fn json_carries_them() {
    let pool = pool(1).await;
    macro_rules! returns {
        ($type:ty, $value:expr) => {
            let value: $type = $value;
            assert_eq!(
                within(pool.apply(same::<Json<$type>>, Json(value.clone())))
                    .await
                    .unwrap(),
                Json(value)
            );
        };
    }
    returns!(Value, json!({"a": [1, "b", null, 0.5, {"c": true}]}));
    returns!(Untagged, Untagged::Text("t".to_owned()));
    returns!(Tagged, Tagged::A { x: 1 });
    returns!(
        Outer,
        Outer {
            name: "n".to_owned(),
            inner: Inner { x: 1 }
        }
    );
    let mapped = within(pool.map(
        |Json(value): Json<Value>| Json(value["n"].clone()),
        (0..5).map(|n| Json(json!({"n": n}))),
    ));
    assert_eq!(
        mapped.await.unwrap(),
        (0..5).map(|n| Json(json!(n))).collect::<Vec<_>>()
    );
}

/// What its serde implementation shall do, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trick {
    None,
    SerializeError,
    SerializePanic,
    DeserializeError,
    DeserializePanic,
    Abort,
}

const TRICKS: [Trick; 6] = [
    Trick::None,
    Trick::SerializeError,
    Trick::SerializePanic,
    Trick::DeserializeError,
    Trick::DeserializePanic,
    Trick::Abort,
];

#[derive(Clone, Debug, PartialEq, Eq)]
struct Tricky(Trick);

impl Serialize for Tricky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Trick::SerializeError => Err(S::Error::custom("does not want to")),
            Trick::SerializePanic => panic!("on its way out"),
            trick => (trick as u8).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Tricky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match TRICKS[usize::from(u8::deserialize(deserializer)?) % TRICKS.len()] {
            Trick::DeserializeError => Err(D::Error::custom("does not want to")),
            Trick::DeserializePanic => panic!("on its way in"),
            Trick::Abort => std::process::abort(),
            trick => Ok(Self(trick)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_argument_that_fails_on_its_way_fails_its_call_alone() {
    let pool = pool(1).await;
    for (trick, kind, text) in [
        (
            Trick::SerializeError,
            TaskErrorKind::Encode,
            "Tricky`: does not want to",
        ),
        (Trick::SerializePanic, TaskErrorKind::Encode, "on its way out"),
        (
            Trick::DeserializeError,
            TaskErrorKind::Decode,
            "Tricky`: does not want to",
        ),
        (Trick::DeserializePanic, TaskErrorKind::Decode, "on its way in"),
        (Trick::Abort, TaskErrorKind::WorkerLost, "SIGABRT"),
    ] {
        let errors = [
            within(pool.apply(pid::<Tricky>, Tricky(trick)))
                .await
                .unwrap_err(),
            within(pool.apply_async(pid::<Tricky>, Tricky(trick)))
                .await
                .unwrap_err(),
            within(pool.map(pid::<Tricky>, [Tricky(trick)]))
                .await
                .unwrap_err(),
            within(pool.map(pid::<Tricky>, [Tricky(trick)]).chunk_size(2))
                .await
                .unwrap_err(),
            within(pool.map_async(pid::<Tricky>, [Tricky(trick)]))
                .await
                .unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
        // Among others of a chunk.
        let input = [Trick::None, Trick::None, trick, Trick::None].map(Tricky);
        let each = within(pool.map(pid::<Tricky>, input).chunk_size(4).collect_results()).await;
        let kinds: Vec<_> = each
            .iter()
            .map(|result| result.as_ref().err().map(|error| error.kind()))
            .collect();
        assert_eq!(kinds, [None, None, Some(kind), None]);
        within(pool.apply(pid::<Tricky>, Tricky(Trick::None)))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_fails_on_its_way_fails_its_call_alone() {
    let pool = pool(1).await;
    let make = |trick: usize| Tricky(TRICKS[trick]);
    for (trick, kind, text) in [
        (1, TaskErrorKind::Encode, "Tricky`: does not want to"),
        (2, TaskErrorKind::Encode, "on its way out"),
        (3, TaskErrorKind::Decode, "Tricky`: does not want to"),
        (4, TaskErrorKind::Decode, "on its way in"),
    ] {
        let errors = [
            within(pool.apply(make, trick)).await.unwrap_err(),
            within(pool.apply_async(make, trick)).await.unwrap_err(),
            within(pool.map(make, [trick])).await.unwrap_err(),
            within(pool.map(make, [trick]).chunk_size(2)).await.unwrap_err(),
            within(pool.map_async(make, [trick, 0])).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
        let each = within(pool.map(make, [0, trick, 0]).chunk_size(3).collect_results()).await;
        let kinds: Vec<_> = each
            .iter()
            .map(|result| result.as_ref().err().map(|error| error.kind()))
            .collect();
        assert_eq!(kinds, [None, Some(kind), None]);
        assert_eq!(within(pool.apply(make, 0)).await.unwrap(), Tricky(Trick::None));
    }
    assert_eq!(pool.stats().restarts, 0);
}

#[tokio::test]
async fn try_apply_gives_back_what_cannot_be_encoded() {
    let pool = pool(1).await;
    let refused = pool
        .try_apply(pid::<Tricky>, Tricky(Trick::SerializeError))
        .unwrap_err();
    assert!(matches!(&refused, procession::TryApplyError::Encode(_, message) if message.contains("Tricky")));
    assert_eq!(refused.into_inner(), Tricky(Trick::SerializeError));
}

#[tokio::test]
async fn a_failure_to_encode_reaches_the_error_callback() {
    let pool = pool(1).await;
    let (sender, received) = std::sync::mpsc::channel();
    let handle = pool
        .task(pid::<Tricky>, Tricky(Trick::SerializePanic))
        .error_callback(move |error| sender.send(error.kind()).unwrap())
        .submit();
    assert_eq!(within(handle).await.unwrap_err().kind(), TaskErrorKind::Encode);
    assert_eq!(crate::fuse::receive(&received), TaskErrorKind::Encode);
}

#[tokio::test]
async fn a_value_over_the_frame_limit_is_refused_where_it_is_encoded() {
    let pool = within(Pool::builder().workers(1).max_frame_size(1000).build())
        .await
        .unwrap();
    let before = pids(&pool);
    let text = |n: usize| "x".repeat(n);
    assert_eq!(
        within(pool.apply(|text: String| text.len(), text(900)))
            .await
            .unwrap(),
        900
    );
    let error = within(pool.apply(|text: String| text.len(), text(1000)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::TooLarge);
    assert!(
        error.to_string().contains("the argument") && error.to_string().contains("1000 bytes"),
        "{error}"
    );
    let refused = pool.try_apply(|text: String| text.len(), text(1001)).unwrap_err();
    assert_eq!(refused.into_inner().len(), 1001);
    // Nothing was sent.
    assert_eq!(pool.stats().tasks_done, 1);

    assert_eq!(within(pool.apply(text, 900)).await.unwrap().len(), 900);
    let error = within(pool.apply(text, 1000)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::TooLarge);
    assert!(
        error.to_string().contains("the result") && error.to_string().contains("1000 bytes"),
        "{error}"
    );
    assert_eq!(pids(&pool), before);
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn long_panic_messages_pass_a_small_frame_limit() {
    let pool = within(
        Pool::builder()
            .workers(1)
            .max_frame_size(100)
            .stderr(procession::Output::null())
            .build(),
    )
    .await
    .unwrap();
    let before = pids(&pool);
    let error = within(pool.apply(|n: usize| -> () { panic!("{}", "m".repeat(n)) }, 100_000))
        .await
        .unwrap_err();
    assert!(error.is_panic(), "{error}");
    assert_eq!(within(pool.apply(same::<u8>, 1)).await.unwrap(), 1);
    assert_eq!(pids(&pool), before);
}

#[tokio::test]
async fn values_without_bytes_pass() {
    let pool = pool(1).await;
    within(pool.apply(same::<()>, ())).await.unwrap();
    assert_eq!(
        within(pool.apply(same::<String>, String::new())).await.unwrap(),
        ""
    );
    assert_eq!(within(pool.apply(same::<Vec<()>>, vec![])).await.unwrap(), []);
    assert_eq!(
        within(pool.map(same::<()>, [(); 1000])).await.unwrap().len(),
        1000
    );
    assert_eq!(
        within(pool.map(same::<()>, [(); 1000]).chunk_size(1))
            .await
            .unwrap()
            .len(),
        1000
    );
    assert_eq!(
        within(pool.map_async(same::<()>, [(); 1000]))
            .await
            .unwrap()
            .len(),
        1000
    );
    assert_eq!(within(pool.map(same::<[u8; 0]>, [[]; 3])).await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_go_there_and_back() {
    let pool = pool(1).await;
    let mut text = "0123456789".repeat(10_000_000);
    text.push_str("the end");
    let back = within(pool.apply(same::<String>, text.clone())).await.unwrap();
    assert!(back == text);
}

#[tokio::test]
async fn descriptors_travel_both_ways() {
    let pool = pool(1).await;
    let (reader, mut writer) = std::io::pipe().unwrap();
    let read = pool.apply_async(
        |pipe: Fd| {
            let mut text = String::new();
            std::io::PipeReader::from(pipe.into_inner())
                .read_to_string(&mut text)
                .unwrap();
            text
        },
        Fd::from(reader),
    );
    writer.write_all(b"through a pipe").unwrap();
    drop(writer);
    assert_eq!(within(read).await.unwrap(), "through a pipe");

    let back = within(pool.apply(
        |text: String| {
            let (reader, mut writer) = std::io::pipe().unwrap();
            writer.write_all(text.as_bytes()).unwrap();
            (1_u8, Fd::from(reader), Some(Fd::from(writer)))
        },
        "from the worker".to_owned(),
    ));
    let (one, reader, writer) = back.await.unwrap();
    drop(writer);
    let mut text = String::new();
    std::io::PipeReader::from(reader.into_inner())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!((one, text.as_str()), (1, "from the worker"));

    // As many as one message takes, and one more.
    let many = |n: usize| {
        (0..n)
            .map(|_| Fd::from(std::fs::File::open("/dev/null").unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        within(pool.apply(|files: Vec<Fd>| files.len(), many(253)))
            .await
            .unwrap(),
        253
    );
    let error = within(pool.apply(|files: Vec<Fd>| files.len(), many(254)))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::Encode);
    assert_eq!(within(pool.apply(many, 253)).await.unwrap().len(), 253);
    let error = within(pool.apply(many, 254)).await.unwrap_err();
    assert_eq!(error.kind(), TaskErrorKind::Encode);
}

#[tokio::test]
async fn descriptors_with_large_values_arrive() {
    let pool = pool(1).await;
    let file = || Fd::from(std::fs::File::open("/dev/null").unwrap());
    for size in [0, 5000, 300_000, 5_000_000] {
        let (back, text) = within(pool.apply(same::<(Fd, String)>, (file(), "x".repeat(size))))
            .await
            .unwrap();
        assert_eq!(text.len(), size);
        assert!(std::fs::File::from(back.into_inner()).metadata().is_ok());
    }
}

#[test]
fn a_descriptor_cannot_be_encoded_elsewhere() {
    let file = Fd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(serde_json::to_string(&file).is_err());
    assert!(serde_json::from_str::<Fd>("0").is_err());
}
