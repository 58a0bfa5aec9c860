//! File descriptors: as many as the system gives, and no more connections than they carry.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Settings, crowd};
use crate::upstream;

/// Descriptors for everything but connections: files, logs, runtimes, name look-ups.
const SPARE: usize = 128;

impl Settings {
    /// Raises the process's bound of descriptors to the most it may have, and lowers `connections`, which is said, to
    /// what fits into it together with the connections to the upstreams.
    pub fn fit_descriptors(&mut self) {
        let Some(descriptors) = raised() else { return };
        let most = |upstream: &upstream::Settings| upstream.max_in_flight.saturating_mul(upstream.servers.len());
        let upstream = self.upstreams.iter().map(most).fold(0, usize::saturating_add);
        let wanted = self.limits.connections;
        let connections = carried(wanted, upstream, descriptors);
        if connections < wanted {
            self.limits.connections = connections;
            tracing::warn!(
                wanted,
                connections,
                descriptors,
                "`connections` is lowered to what the file descriptors carry; raise the hard limit (LimitNOFILE= of systemd, ulimit -n)"
            );
        }
    }
}

/// The bound after it was raised; `None`: there is none.
fn raised() -> Option<usize> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let bound = if raised { maximum } else { current };
    bound.map(|bound| usize::try_from(bound).unwrap_or(usize::MAX))
}

/// How many of the `wanted` connections fit into `descriptors` beside at most `upstream` to the upstreams: as many as
/// leave those their number, or half of all where that is more.
fn carried(wanted: usize, upstream: usize, descriptors: usize) -> usize {
    let left = descriptors.saturating_sub(SPARE + 2 * crowd::reserve(wanted));
    let upstream = upstream.min(wanted).min(left / 2);
    wanted.min(left - upstream).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_upstreams() {
        assert_eq!(carried(20_000, 1024, 1_048_576), 20_000);
        assert_eq!(carried(20_000, 1024, 20_000), 20_000 - 128 - 624 - 1024);
        assert_eq!(carried(20_000, 100_000, 20_000), (20_000 - 128 - 624) / 2);
        assert_eq!(carried(20_000, 1024, 1024), (1024 - 128 - 624) / 2);
        assert_eq!(carried(20_000, 1024, 10), 1);
        assert_eq!(carried(10, 1024, 200), 10);
    }
}
