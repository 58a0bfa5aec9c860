//! What is read of an event.
//!
//! Source: Stripe, "The Event object", <https://docs.stripe.com/api/events/object>, and "Thin events",
//! <https://docs.stripe.com/api/v2/core/events>.

use std::{borrow::Cow, fmt, marker::PhantomData, sync::Arc};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// The longest value that is read of an event, in bytes: it becomes a header, a log field and a key.
pub(super) const LIMIT_BYTES: usize = 255;

/// The id of an event: `evt_` and 1 to 250 of `A–Z a–z 0–9 _`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventId(Arc<str>);

/// An event, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    /// Its `type`.
    pub kind: Arc<str>,
    pub livemode: bool,
    /// The connected account, or of a thin event its context; `None`: one's own.
    pub account: Option<Arc<str>>,
    /// The id of the object that it is about, where it has one that can be used.
    pub object: Option<Arc<str>>,
}

/// Why signed bytes are no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    NotJson,
    Id,
    Type,
    Livemode,
    Account,
}

impl EventId {
    /// Takes `text` if it is an event's id.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("evt_")?;
        let fits = (1..=250).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        fits.then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Event {
    /// Reads the event in `body`. Of a key that is there twice the last one counts, as for JavaScript; a byte order mark is
    /// passed over.
    ///
    /// # Errors
    /// [`Unusable`] for what is no JSON object, has no usable `id` or `type`, no `livemode`, or an account that is none.
    pub fn read(body: &[u8]) -> Result<Self, Unusable> {
        let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
        let read = fields(body).map_err(|_| Unusable::NotJson)?;
        let id = read.id.text().and_then(EventId::parse).ok_or(Unusable::Id)?;
        let kind = read.kind.text().filter(|kind| is_type(kind)).ok_or(Unusable::Type)?.into();
        let Value::Flag(livemode) = read.livemode else { return Err(Unusable::Livemode) };
        let is_thin = read.object.text() == Some("v2.core.event");
        let (account, object) = if is_thin { (&read.context, &read.related) } else { (&read.account, &read.data.0) };
        let account = match account {
            Value::Absent => None,
            Value::Text(text) if is_plain(text) => Some(Arc::from(&**text)),
            Value::Text(_) | Value::Flag(_) | Value::Other => return Err(Unusable::Account),
        };
        let object = object.0.text().filter(|text| is_plain(text)).map(Arc::from);
        Ok(Self { id, kind, livemode, account, object })
    }
}

fn fields(body: &[u8]) -> serde_json::Result<Fields<'_>> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let fields = Reader(PhantomData).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(fields)
}

/// Whether a byte may stand between the dots of a type.
pub(super) fn fits_a_type(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'[' | b']')
}

fn is_type(text: &str) -> bool {
    (1..=LIMIT_BYTES).contains(&text.len()) && text.bytes().all(|b| b == b'.' || fits_a_type(b))
}

/// Printable ASCII without quotes, backslashes, commas and spaces.
fn is_plain(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b',');
    (1..=LIMIT_BYTES).contains(&text.len()) && text.bytes().all(fits)
}

#[derive(Default)]
struct Fields<'b> {
    id: Value<'b>,
    kind: Value<'b>,
    livemode: Value<'b>,
    object: Value<'b>,
    account: Value<'b>,
    context: Value<'b>,
    related: Identified<'b>,
    data: Data<'b>,
}

/// A value of which only text and flags are kept.
#[derive(Default)]
enum Value<'b> {
    /// Left out, or null.
    #[default]
    Absent,
    Text(Cow<'b, str>),
    Flag(bool),
    Other,
}

/// An object's `id`.
#[derive(Default)]
struct Identified<'b>(Value<'b>);

/// The `object` of an event's data.
#[derive(Default)]
struct Data<'b>(Identified<'b>);

impl Value<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Flag(_) | Self::Other => None,
        }
    }
}

/// What one looks for in an object; anything else has nothing of it.
trait Members<'de>: Default {
    /// Takes the value of `key`, whatever it is.
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

impl<'de> Members<'de> for Fields<'de> {
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "id" => self.id = map.next_value()?,
            "type" => self.kind = map.next_value()?,
            "livemode" => self.livemode = map.next_value()?,
            "object" => self.object = map.next_value()?,
            "account" => self.account = map.next_value()?,
            "context" => self.context = map.next_value()?,
            "related_object" => self.related = map.next_value_seed(Reader(PhantomData))?,
            "data" => self.data = map.next_value_seed(Reader(PhantomData))?,
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl<'de> Members<'de> for Data<'de> {
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "object" => self.0 = map.next_value_seed(Reader(PhantomData))?,
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl<'de> Members<'de> for Identified<'de> {
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "id" => self.0 = map.next_value()?,
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// Reads the members of an object.
struct Reader<T>(PhantomData<T>);

impl<'de, T: Members<'de>> DeserializeSeed<'de> for Reader<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// What a visitor of anything answers to the kinds that it does not look into.
macro_rules! otherwise {
    ($value:ty, $other:expr, $($visit:ident($kind:ty)),+) => {
        $(fn $visit<E: Error>(self, _: $kind) -> Result<$value, E> {
            Ok($other)
        })+

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<$value, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok($other)
        }
    };
}

impl<'de, T: Members<'de>> Visitor<'de> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut members = T::default();
        while let Some(Key(key)) = map.next_key()? {
            members.take(&key, &mut map)?;
        }
        Ok(members)
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::default())
    }

    otherwise!(T, T::default(), visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
}

impl<'de: 'b, 'b> Deserialize<'de> for Value<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneValue)
    }
}

struct OneValue;

impl<'de> Visitor<'de> for OneValue {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value<'de>, E> {
        Ok(Value::Absent)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value<'de>, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    otherwise!(Value<'de>, Value::Other, visit_i64(i64), visit_u64(u64), visit_f64(f64));
}

/// A key, without a copy where it has no escape.
struct Key<'b>(Cow<'b, str>);

impl<'de: 'b, 'b> Deserialize<'de> for Key<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_str(OneValue)? {
            Value::Text(text) => Ok(Self(text)),
            Value::Absent | Value::Flag(_) | Value::Other => Err(Error::custom("a key is text")),
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotJson => "it is not JSON",
            Self::Id => "its `id` is not `evt_` and letters, digits or underscores",
            Self::Type => "its `type` is missing or no type",
            Self::Livemode => "its `livemode` is missing, or neither true nor false",
            Self::Account => "its account cannot be an account's id",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Event, Unusable> {
        Event::read(body.as_bytes())
    }

    #[test]
    fn what_is_read_of_an_event_and_nothing_else_matters() {
        let event = read(
            r#"{"id":"evt_1","object":"event","account":"acct_1","data":{"object":{"id":"in_1","x":[1,{"id":"no"}]},
            "previous_attributes":{"id":"no"}},"livemode":false,"type":"invoice.paid","request":{"id":"req_1"},"context":"no"}"#,
        )
        .unwrap();
        assert_eq!((event.id.as_str(), &*event.kind, event.livemode), ("evt_1", "invoice.paid", false));
        assert_eq!((event.account.as_deref(), event.object.as_deref()), (Some("acct_1"), Some("in_1")));
        let thin = read(
            r#"{"id":"evt_2","object":"v2.core.event","context":"acct_2","related_object":{"id":"mtr_1"},"livemode":true,
            "type":"v1.billing.meter.error_report_triggered","account":"no","data":null}"#,
        )
        .unwrap();
        assert_eq!((thin.account.as_deref(), thin.object.as_deref()), (Some("acct_2"), Some("mtr_1")));
        // Of a key that is there twice the last one counts; escapes are read.
        let odd = read("\u{feff}{\"id\":1,\"\\u0069d\":\"evt_\\u0033\",\"type\":\"a\",\"livemode\":true,\"data\":7}")
            .unwrap();
        assert_eq!((odd.id.as_str(), odd.account, odd.object), ("evt_3", None, None));
    }

    #[test]
    fn what_cannot_be_used_is_told_apart() {
        let with = |id: &str, kind: &str, rest: &str| read(&format!(r#"{{"id":{id},"type":{kind}{rest}}}"#)).err();
        let live = r#","livemode":true"#;
        assert_eq!(with(r#""evt_1""#, r#""a.b""#, live), None);
        for id in ["null", "1", r#""evt_""#, r#""evt_1 ""#, r#""in_1""#, "{}", "[\"evt_1\"]"] {
            assert_eq!(with(id, r#""a""#, live), Some(Unusable::Id), "{id}");
        }
        for kind in ["null", "\"\"", r#""a b""#, r#""a\nb""#, "true"] {
            assert_eq!(with(r#""evt_1""#, kind, live), Some(Unusable::Type), "{kind}");
        }
        for rest in ["", r#","livemode":null"#, r#","livemode":"true""#, r#","livemode":1"#] {
            assert_eq!(with(r#""evt_1""#, r#""a""#, rest), Some(Unusable::Livemode), "{rest}");
        }
        let long = format!(r#"{live},"account":"{}""#, "a".repeat(256));
        for rest in [&long, r#","livemode":true,"account":7"#, r#","livemode":true,"account":"a b""#] {
            assert_eq!(with(r#""evt_1""#, r#""a""#, rest), Some(Unusable::Account), "{rest}");
        }
        for body in ["", "x", "{", r#"{"id":"evt_1"} x"#] {
            assert_eq!(read(body).err(), Some(Unusable::NotJson), "{body}");
        }
        assert_eq!(read("[]").err(), Some(Unusable::Id));
    }

    #[test]
    fn no_depth_of_nesting_costs_the_stack() {
        let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(500_000), "]".repeat(500_000));
        assert_eq!(read(&deep).err(), Some(Unusable::Id));
        let deep = format!(r#"{{"data":{}1{}}}"#, r#"{"object":"#.repeat(100_000), "}".repeat(100_000));
        assert!(read(&deep).is_err());
    }
}
