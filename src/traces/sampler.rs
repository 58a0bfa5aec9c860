//! Which traces are recorded.
//!
//! Source: OpenTelemetry, "Built-in samplers", <https://opentelemetry.io/docs/specs/otel/trace/sdk/#built-in-samplers>.

use opentelemetry::trace::TraceId;

use super::Traceparent;

/// How many halves of a trace's id there are, of 63 bits: 2 to the 63rd.
const ALL: f64 = 9_223_372_036_854_775_808.0;

/// Decides by a trace's id and by what whoever asks has decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether a trace that somebody else began is recorded if he does, and only then.
    follows: bool,
    share: Share,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Share {
    All,
    None,
    /// Those whose id is below it.
    Below(u64),
}

impl Default for Sampler {
    fn default() -> Self {
        Self { follows: true, share: Share::All }
    }
}

impl Sampler {
    /// The sampler of that name. Beside it stands whether `argument` is needed and no share from 0 to 1: then all are
    /// recorded. `None` for a name that is not known here.
    pub fn named(name: &str, argument: Option<&str>) -> Option<(Self, bool)> {
        let (follows, rule) = name.strip_prefix("parentbased_").map_or((false, name), |rule| (true, rule));
        let ratio = || argument.and_then(|text| text.parse().ok()).filter(|ratio| (0.0..=1.0).contains(ratio));
        let (share, is_wrong) = match rule {
            "always_on" => (Share::All, false),
            "always_off" => (Share::None, false),
            "traceidratio" => ratio().map_or((Share::All, true), |ratio| (Share::of(ratio), false)),
            _ => return None,
        };
        Some((Self { follows, share }, is_wrong))
    }

    /// Whether `trace`, which began with `parent` or here, is recorded.
    pub(super) fn takes(&self, trace: TraceId, parent: Option<&Traceparent>) -> bool {
        match (parent, self.share) {
            (Some(parent), _) if self.follows => parent.is_sampled,
            (_, Share::All) => true,
            (_, Share::None) => false,
            (_, Share::Below(limit)) => {
                let half = u128::from_be_bytes(trace.to_bytes()) << 64 >> 65;
                half < u128::from(limit)
            }
        }
    }
}

impl Share {
    fn of(ratio: f64) -> Self {
        if ratio >= 1.0 {
            return Self::All;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to `ALL`")]
        Self::Below((ratio * ALL) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, argument: &str) -> Sampler {
        let (sampler, is_wrong) = Sampler::named(name, Some(argument)).unwrap();
        assert!(!is_wrong, "{name} {argument}");
        sampler
    }

    #[test]
    fn who_began_a_trace_decides_where_the_sampler_follows() {
        let fresh = Traceparent::fresh();
        for (is_sampled, name, expected) in [
            (true, "parentbased_always_off", true),
            (false, "parentbased_always_on", false),
            (true, "always_off", false),
            (false, "always_on", true),
        ] {
            let parent = Traceparent { is_sampled, ..fresh };
            assert_eq!(named(name, "").takes(parent.trace, Some(&parent)), expected, "{name}");
        }
        assert!(Sampler::default().takes(fresh.trace, None));
        assert!(!named("parentbased_always_off", "").takes(fresh.trace, None));
    }

    #[test]
    fn a_share_of_the_traces_is_recorded_by_their_ids() {
        let all = 10_000;
        let taken = |sampler: Sampler| (0..all).filter(|_| sampler.takes(Traceparent::fresh().trace, None)).count();
        assert_eq!(taken(named("traceidratio", "0")), 0);
        assert_eq!(taken(named("traceidratio", "1")), all);
        let quarter = taken(named("parentbased_traceidratio", "0.25"));
        assert!((2_200..2_800).contains(&quarter), "{quarter}");
        let half = named("traceidratio", "0.5");
        assert!(half.takes(TraceId::from(u128::MAX << 64), None) && !half.takes(TraceId::from(u128::MAX), None));
    }

    #[test]
    fn what_is_not_known_is_said() {
        for name in ["", "on", "jaeger_remote", "parentbased_", "parentbased_parentbased_always_on"] {
            assert_eq!(Sampler::named(name, None), None, "{name}");
        }
        for argument in [None, Some(""), Some("half"), Some("1.5"), Some("-0.1"), Some("NaN")] {
            let all = Sampler::named("always_on", None).unwrap().0;
            assert_eq!(Sampler::named("traceidratio", argument), Some((all, true)), "{argument:?}");
        }
    }
}
