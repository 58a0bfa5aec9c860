//! The header `traceparent`, which names the trace that a request belongs to.
//!
//! Source: W3C Trace Context, <https://www.w3.org/TR/trace-context/>.

use std::cell::RefCell;

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

use crate::headers::TRACEPARENT;

/// Of version 00; later ones may be longer.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;

thread_local! {
    /// Ids tell traces and spans apart; nothing rests on their being hard to guess.
    static RANDOM: RefCell<fastrand::Rng> = RefCell::new(fastrand::Rng::new());
}

/// What a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    pub trace: TraceId,
    /// Of whoever sends it.
    pub span: SpanId,
    /// Whether the sender records the trace.
    pub is_sampled: bool,
}

impl Traceparent {
    /// A new trace that nobody records.
    pub fn fresh() -> Self {
        Self { trace: new_trace(), span: new_span(), is_sampled: false }
    }

    /// What `headers` say; `None` if that is nothing, not once, or not in the form that it must have.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        Self::parse(value.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.get(..LENGTH)?.split('-');
        let (version, trace, span, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let lengths = [version, trace, span, flags].map(|field| if is_hex(field) { field.len() } else { 0 });
        let rest = text.get(LENGTH..)?;
        let is_long = rest.starts_with('-') && version != "00";
        if lengths != [2, 32, 16, 2] || version == "ff" || !(rest.is_empty() || is_long) {
            return None;
        }
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & SAMPLED != 0;
        (trace != TraceId::INVALID && span != SpanId::INVALID).then_some(Self { trace, span, is_sampled })
    }

    /// As the header.
    pub fn header(&self) -> HeaderValue {
        let mut text = *b"00-................................-................-00";
        if let [_, _, _, ids @ .., _, _, flag] = &mut text
            && let (trace, [_, span @ ..]) = ids.split_at_mut(32)
        {
            hex(trace, &self.trace.to_bytes());
            hex(span, &self.span.to_bytes());
            *flag = if self.is_sampled { b'1' } else { b'0' };
        }
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
    }
}

/// The id of a new trace.
pub(super) fn new_trace() -> TraceId {
    TraceId::from(RANDOM.with_borrow_mut(|rng| rng.u128(1..)))
}

/// The id of a new span.
pub(super) fn new_span() -> SpanId {
    SpanId::from(RANDOM.with_borrow_mut(|rng| rng.u64(1..)))
}

fn hex(out: &mut [u8], bytes: &[u8]) {
    let digit = |value: u8| if value < 10 { b'0' + value } else { b'a' + value - 10 };
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn of(values: &[&str]) -> Option<Traceparent> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Traceparent::of(&headers)
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for is_sampled in [true, false] {
            let printed = Traceparent { is_sampled, ..Traceparent::fresh() };
            assert_eq!(of(&[printed.header().to_str().unwrap()]), Some(printed));
        }
        let read = of(&[&format!("00-{TRACE}-{SPAN}-01")]).unwrap();
        assert_eq!((read.trace.to_string(), read.span.to_string(), read.is_sampled), (TRACE.into(), SPAN.into(), true));
    }

    #[test]
    fn only_the_first_flag_says_that_it_is_recorded_and_a_later_version_may_be_longer() {
        for (text, is_sampled) in
            [("00-T-S-00", false), ("00-T-S-fe", false), ("00-T-S-03", true), ("cc-T-S-01-more", true)]
        {
            let text = text.replace('T', TRACE).replace('S', SPAN);
            assert_eq!(of(&[&text]).map(|read| read.is_sampled), Some(is_sampled), "{text}");
        }
    }

    #[test]
    fn what_has_not_the_form_is_none() {
        let (no_trace, no_span) = ("0".repeat(32), "0".repeat(16));
        for text in [
            String::new(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-011"),
            format!("cc-{TRACE}-{SPAN}-01more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{no_trace}-{SPAN}-01"),
            format!("00-{TRACE}-{no_span}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{TRACE}0-{}-01", &SPAN[1..]),
            format!("00-{}é-{SPAN}-01", &TRACE[2..]),
        ] {
            assert_eq!(of(&[&text]), None, "{text}");
        }
        let good = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(of(&[&good, &good]), None, "twice");
        assert_eq!(of(&[]), None);
    }
}
