//! What is read of an event: nothing that comes breaks it, and what it finds is what a whole reading of the JSON finds.
#![no_main]

use countersign::webhook::{Event, TypeFilter, Unusable};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let read = Event::read(body);
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    let Ok(whole) = serde_json::from_slice::<Value>(body) else {
        // What only the whole reading minds is too deep, or lies in what is passed over.
        if serde_json::from_slice::<serde::de::IgnoredAny>(body).is_err() {
            assert_eq!(read.err(), Some(Unusable::NotJson));
        }
        return;
    };
    match (&read, expected(&whole)) {
        (Ok(event), Some(expected)) => assert_eq!(*event, expected),
        (Err(error), None) => assert_ne!(*error, Unusable::NotJson, "it is JSON"),
        (read, expected) => panic!("read {read:?}, expected {expected:?}"),
    }
    if let Ok(event) = &read {
        let (exact, whole) = (TypeFilter::parse(&event.kind), event.kind.split('.').next().unwrap_or_default());
        assert!(exact.is_none_or(|filter| filter.takes(&event.kind)));
        let below = TypeFilter::parse(&format!("{whole}.*"));
        assert!(below.is_none_or(|filter| filter.takes(&event.kind) == (event.kind.len() > whole.len())));
    }
});

/// The event that a value is, by a second reading.
fn expected(value: &Value) -> Option<Event> {
    let plain = |value: &Value| {
        let text = value.as_str()?;
        let fits = |c: char| c.is_ascii_graphic() && !['"', '\\', ','].contains(&c);
        ((1..=255).contains(&text.len()) && text.chars().all(fits)).then(|| text.into())
    };
    let id = value["id"].as_str()?.strip_prefix("evt_")?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if id.is_empty() || id.len() > 250 || !id.chars().all(word) {
        return None;
    }
    let kind = value["type"].as_str()?;
    let of_a_type = |c: char| word(c) || ['.', '-', '[', ']'].contains(&c);
    if kind.is_empty() || kind.len() > 255 || !kind.chars().all(of_a_type) {
        return None;
    }
    let livemode = value["livemode"].as_bool()?;
    let is_thin = value["object"] == "v2.core.event";
    let (account, object) = if is_thin {
        (&value["context"], &value["related_object"]["id"])
    } else {
        (&value["account"], &value["data"]["object"]["id"])
    };
    let account = if account.is_null() { None } else { Some(plain(account)?) };
    let id = countersign::webhook::EventId::parse(&format!("evt_{id}"))?;
    Some(Event { id, kind: kind.into(), livemode, account, object: plain(object) })
}
