//! What the system says of this process.
//!
//! Source: proc(5); the names are those that Prometheus' client libraries agree on,
//! <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>.

use std::fs;

/// Figures of the process; each is missing where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) open_descriptors: Option<u64>,
    pub(super) most_descriptors: Option<u64>,
    pub(super) threads: Option<u64>,
}

/// As it is now.
pub(super) fn figures() -> Process {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let page = rustix::param::page_size() as u64;
    let ticks = rustix::param::clock_ticks_per_second();
    // The second field is a name in brackets, which may hold anything.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    // Numbered as in proc(5), of which the first here is the third.
    let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    #[expect(clippy::cast_precision_loss, reason = "a metric")]
    let seconds = |user: u64, system: u64| (user + system) as f64 / ticks as f64;
    Process {
        cpu_seconds: field(14).zip(field(15)).map(|(user, system)| seconds(user, system)),
        resident_bytes: field(24).map(|pages| pages * page),
        virtual_bytes: field(23),
        open_descriptors: fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64),
        most_descriptors: limits.current,
        threads: field(20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_everything_of_this_process() {
        let Process { cpu_seconds, resident_bytes, virtual_bytes, open_descriptors, threads, .. } = figures();
        assert!(cpu_seconds.is_some() && open_descriptors > Some(2) && threads >= Some(1));
        assert!(resident_bytes > Some(1 << 20) && virtual_bytes > resident_bytes);
    }
}
