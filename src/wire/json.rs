//! [`Json`]: a way across for types that postcard cannot carry.

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Carries a value as JSON text inside an argument or a result.
///
/// For types that need a self-describing format: `serde_json::Value`, and those with `#[serde(untagged)]`,
/// `#[serde(flatten)]`, `#[serde(tag)]` or `skip_serializing_if`.
///
/// # Examples
///
/// ```
/// use procession::{Json, Pool};
/// use serde_json::{Value, json};
///
/// fn name(Json(value): Json<Value>) -> Json<Value> {
///     Json(value["name"].clone())
/// }
///
/// procession::init();
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let pool = Pool::builder().workers(1).build().await?;
/// let Json(found) = pool.apply(name, Json(json!({"name": "Ada", "born": 1815}))).await?;
/// assert_eq!(found, "Ada");
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json<T>(
    /// The value.
    pub T,
);

impl<T> Json<T> {
    /// The value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> From<T> for Json<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Serialize> Serialize for Json<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = serde_json::to_string(&self.0).map_err(S::Error::custom)?;
        serializer.serialize_str(&text)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Json<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        serde_json::from_str(&text).map(Self).map_err(D::Error::custom)
    }
}
