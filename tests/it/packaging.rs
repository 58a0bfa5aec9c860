//! What is shipped beside the program, and how the program names itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use countersign::{limits::Limits, version};
use serde_json::Value;

use crate::{
    commands::countersign,
    documents::repository,
    support::{SECRET, write_files},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn ran(arguments: &[&str]) -> Output {
    countersign().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The commands that `--help` lists.
fn commands() -> Vec<String> {
    let help = text(&ran(&["--help"]).stdout);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| line.starts_with("  "));
    let first = listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    first.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn the_version_is_one_line_with_the_commit() {
    let output = ran(&["--version"]);
    let expected = format!("countersign {} ({})\n", version::RELEASE, version::COMMIT);
    assert_eq!(text(&output.stdout), expected);
    let git = |arguments: &[&str]| Command::new("git").current_dir(root()).args(arguments).output();
    let top = git(&["rev-parse", "--show-toplevel"]).ok().filter(|output| output.status.success());
    if top.is_some_and(|top| Path::new(text(&top.stdout).trim()) == root()) {
        let known = git(&["cat-file", "-e", &format!("{}^{{commit}}", version::COMMIT)]).unwrap();
        assert!(known.status.success(), "{} is no commit of this repository", version::COMMIT);
    }
}

/// The files that have cargo run the build script again, besides its own.
fn followed(said: &str) -> Vec<&str> {
    let files = said.lines().filter_map(|line| line.strip_prefix("cargo::rerun-if-changed="));
    files.filter(|file| *file != "src/build.rs").collect()
}

/// What the build script says the commit is, in `folder` and with `variable` in its environment.
fn told_commit(program: &Path, folder: &Path, variable: Option<&str>) -> String {
    let mut command = Command::new(program);
    command.current_dir(folder).env("CARGO_MANIFEST_DIR", folder).env("GIT_CEILING_DIRECTORIES", "/");
    command
        .env("PROFILE", "release")
        .env_remove("COUNTERSIGN_COMMIT")
        .envs(variable.map(|commit| ("COUNTERSIGN_COMMIT", commit)));
    let output = command.output().unwrap();
    assert!(output.status.success());
    let said = text(&output.stdout);
    for file in followed(&said) {
        assert!(folder.join(file).exists(), "{file} is not there: every build would begin anew");
    }
    said.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=COUNTERSIGN_COMMIT=")).unwrap().to_owned()
}

#[test]
fn the_commit_is_git_s_or_that_of_a_variable_or_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("build-script");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut compile = Command::new(rustc);
    compile.args(["--edition", "2024", "-o"]).arg(&program).arg(root().join("src/build.rs"));
    assert!(compile.status().unwrap().success());

    let bare = folder.path().join("bare");
    fs::create_dir(&bare).unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    assert_eq!(told_commit(&program, &bare, None), "unknown");
    assert_eq!(told_commit(&program, &bare, Some(commit)), "0123456789ab");
    for odd in ["", "main", "0123456789abcdef\nx", "0123"] {
        assert_eq!(told_commit(&program, &bare, Some(odd)), "unknown", "{odd:?}");
    }

    let repository = folder.path().join("repository");
    let git = |arguments: &[&str]| {
        let who = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
        let output = Command::new("git").arg("-C").arg(&repository).args(who).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    };
    fs::create_dir(&repository).unwrap();
    git(&["init", "--quiet"]);
    assert_eq!(told_commit(&program, &repository, None), "unknown", "there is no commit yet");
    for _ in 0..2 {
        git(&["commit", "--quiet", "--allow-empty", "--message", "a"]);
        let head = git(&["rev-parse", "HEAD"]);
        assert_eq!(told_commit(&program, &repository, Some(commit)), head[..12]);
    }
    // Sources that were unpacked within somebody else's repository are not of its commit.
    let within = repository.join("within");
    fs::create_dir(&within).unwrap();
    assert_eq!(told_commit(&program, &within, Some(commit)), "0123456789ab");
}

#[test]
fn completions_know_every_command_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = ran(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = text(&output.stdout);
        for command in commands() {
            assert!(script.contains(&command), "{shell} does not know {command}");
        }
    }
    let script = text(&ran(&["completions", "bash"]).stdout);
    let checked = Command::new("bash").args(["-n", "-c", &script]).output().unwrap();
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    assert_eq!(ran(&["completions", "nonsense"]).status.code(), Some(2));
}

#[test]
fn manual_pages_are_printed_or_written_for_every_command() {
    let page = text(&ran(&["man"]).stdout);
    assert!(page.contains(".TH countersign 1") && page.contains(version::COMMIT), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("new/man1");
    let output = ran(&["man", "--dir", target.to_str().unwrap()]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    assert_eq!(fs::read_to_string(target.join("countersign.1")).unwrap(), page);
    for name in commands().into_iter().chain(["audit-verify".to_owned()]) {
        let page = fs::read_to_string(target.join(format!("countersign-{name}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    fs::write(folder.path().join("file"), "").unwrap();
    let output = ran(&["man", "--dir", folder.path().join("file").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("--dir"));
}

/// Holds rule 15.
#[test]
fn completions_and_pages_that_nobody_reads_are_no_panic() {
    for arguments in [&["completions", "bash"][..], &["man"]] {
        let mut command = countersign();
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    }
}

const UNIT: &str = "examples/systemd/countersign.service";
const SOCKET: &str = "examples/systemd/countersign.socket";

/// What `systemd-analyze` answers of the units, the program being this one; `None` where it is not here and need not be.
fn analyzed(arguments: &[&str]) -> Option<Output> {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for unit in [UNIT, SOCKET] {
        let path = folder.path().join(unit.rsplit('/').next().unwrap());
        fs::write(&path, repository(unit).replace("/usr/bin/countersign", env!("CARGO_BIN_EXE_countersign"))).unwrap();
        paths.push(path);
    }
    if arguments[0] == "security" {
        paths.truncate(1);
    }
    match Command::new("systemd-analyze").args(arguments).args(paths).env("SYSTEMD_COLORS", "0").output() {
        Ok(output) => Some(output),
        Err(error) => {
            assert!(std::env::var_os("COUNTERSIGN_REQUIRE_SYSTEMD").is_none(), "systemd-analyze: {error}");
            None
        }
    }
}

#[test]
fn the_units_are_well_formed() {
    let Some(output) = analyzed(&["verify", "--man=no"]) else { return };
    let said = text(&[output.stdout, output.stderr].concat());
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_unit_exposes_little() {
    let Some(output) = analyzed(&["security", "--offline=true", "--no-pager"]) else { return };
    let said = text(&output.stdout);
    let score = said.split("Overall exposure level for countersign.service: ").nth(1).unwrap();
    let score: f64 = score.split_whitespace().next().unwrap().parse().unwrap();
    assert!(score <= 1.5, "{said}");
}

#[test]
fn each_hardening_that_the_documentation_promises_stands_in_the_unit_and_the_other_way_round() {
    let page = repository("docs/how-to/run-behind-systemd.md");
    let section = page.split_once("\n## What it may not do\n").unwrap().1.split("\n## ").next().unwrap();
    let promised: BTreeSet<&str> = section.split('`').skip(1).step_by(2).filter(|code| code.contains('=')).collect();
    let unit = repository(UNIT);
    let hardening = &unit[unit.find("AmbientCapabilities=").unwrap()..unit.find("[Install]").unwrap()];
    let stands: BTreeSet<&str> =
        hardening.lines().filter(|line| line.contains('=') && !line.starts_with('#')).collect();
    assert!(promised.len() >= 25, "{promised:?}");
    assert_eq!(promised, stands);
}

#[test]
fn the_unit_waits_longer_than_a_drain_and_does_not_retry_what_stays_wrong() {
    let unit = repository(UNIT);
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap().to_owned();
    let limits = Limits::default();
    assert!(value("TimeoutStopSec").parse::<u64>().unwrap() > (limits.drain + limits.drain_delay).as_secs() + 5);
    assert_eq!(value("RestartPreventExitStatus"), "78");
    assert_eq!(
        (value("Type"), value("User"), value("StateDirectory")),
        ("notify".into(), "countersign".into(), "countersign".into())
    );
    assert_eq!(value("CapabilityBoundingSet"), "CAP_NET_BIND_SERVICE");
    // The package's file and the socket's agree on the address, else the gateway warns of it.
    let listen = repository(SOCKET).lines().find_map(|line| line.strip_prefix("ListenStream=").map(str::to_owned));
    let config: toml::Table = repository("examples/debian/countersign.toml").parse().unwrap();
    assert_eq!(listen.as_deref(), config["listener"]["address"].as_str());
}

/// `[package.metadata.deb]`.
fn deb() -> toml::Table {
    let manifest: toml::Table = repository("Cargo.toml").parse().unwrap();
    manifest["package"]["metadata"]["deb"].as_table().unwrap().clone()
}

/// The files of the Debian package: what each is made of, and where it goes.
fn assets() -> Vec<(String, String)> {
    let deb = deb();
    let assets = deb["assets"].as_array().unwrap();
    let text = |asset: &toml::Value, place: usize| asset[place].as_str().unwrap().to_owned();
    assets.iter().map(|asset| (text(asset, 0), text(asset, 1))).collect()
}

#[test]
fn every_file_of_the_debian_package_is_there_or_is_built() {
    let build = repository("examples/debian/build");
    for (source, _) in assets() {
        if let Some(program) = source.strip_prefix("target/release/") {
            assert_eq!(program, env!("CARGO_PKG_NAME"));
        } else if let Some(made) = source.strip_prefix("target/package/") {
            for part in made.split('/').filter(|part| !part.contains('*')) {
                assert!(build.contains(part), "{source} is not made by examples/debian/build");
            }
        } else {
            assert!(root().join(&source).is_file(), "{source} is not there");
        }
    }
    for script in ["postinst", "prerm", "postrm"] {
        let path = root().join(deb()["maintainer-scripts"].as_str().unwrap()).join(script);
        let checked = Command::new("sh").arg("-n").arg(&path).output().unwrap();
        assert!(checked.status.success(), "{}", text(&checked.stderr));
    }
    let to: BTreeSet<String> = assets().into_iter().map(|(_, to)| to).collect();
    for wanted in ["usr/bin/", "usr/lib/systemd/system/", "usr/share/man/man1/", "usr/share/doc/countersign/copyright"]
    {
        assert!(to.contains(wanted), "{wanted}");
    }
}

#[test]
fn the_debian_package_starts_nothing_before_it_is_configured() {
    for script in ["postinst", "prerm", "postrm"] {
        let script = repository(&format!("examples/debian/{script}"));
        for line in script.lines().filter(|line| line.contains("deb-systemd")) {
            let is_harmless = ["daemon-reload", "try-restart", "stop"].iter().any(|verb| line.contains(verb));
            assert!(is_harmless, "{line}");
        }
    }
}

/// A folder with the package's configuration.
fn installed() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["certs", "secrets"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let path = folder.path().join("countersign.toml");
    fs::write(&path, repository("examples/debian/countersign.toml")).unwrap();
    (folder, path)
}

#[test]
fn check_tells_all_that_must_be_filled_into_the_package_s_configuration() {
    let (_folder, path) = installed();
    let output = ran(&["check", "--config", path.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert_eq!(said.matches("error: ").count(), 4, "{said}");
    for part in ["certs/gateway.pem", "certs/gateway.key", "secrets/shipping.absec", "accounts = [\"acct_…\"]"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn the_package_s_configuration_is_right_once_it_is_filled_in() {
    let (folder, path) = installed();
    write_files(folder.path(), SECRET);
    for (from, to) in
        [("cert.pem", "certs/gateway.pem"), ("key.pem", "certs/gateway.key"), ("secret", "secrets/shipping.absec")]
    {
        fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
    }
    let text_before = fs::read_to_string(&path).unwrap();
    fs::write(&path, text_before.replace("accounts = []", "accounts = [\"acct_1JSkf6FRwUQjTSJE\"]")).unwrap();
    let output = ran(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn the_bill_of_materials_has_every_crate_of_the_program() {
    let run = || Command::new(root().join(".ci/sbom")).current_dir("/").output().unwrap();
    let (output, again) = (run(), run());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout == again.stdout, "the same sources give another bill");
    let bill: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    assert_eq!(bill["metadata"]["component"]["name"], "countersign");
    let key = |name: &str, version: &str| format!("{name} {version}");
    let components: BTreeMap<String, &Value> = bill["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|component| (key(component["name"].as_str().unwrap(), component["version"].as_str().unwrap()), component))
        .collect();

    let lock: toml::Table = repository("Cargo.lock").parse().unwrap();
    let checksums: BTreeMap<String, String> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|package| {
            let key = key(package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
            Some((key, package.get("checksum")?.as_str().unwrap().to_owned()))
        })
        .collect();
    let mut tree = Command::new(env!("CARGO"));
    tree.current_dir(root()).args([
        "tree",
        "--locked",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let tree = tree.output().unwrap();
    assert!(tree.status.success(), "{}", text(&tree.stderr));
    let tree = text(&tree.stdout);
    let linked: BTreeSet<String> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some(key(words.next()?, words.next()?.strip_prefix('v')?))
        })
        .filter(|package| !package.starts_with("countersign "))
        .collect();
    assert!(linked.len() > 100, "{linked:?}");
    for package in &linked {
        let component = components.get(package).unwrap_or_else(|| panic!("{package} is missing"));
        assert_eq!(component["hashes"][0]["content"], checksums[package].as_str(), "{package}");
        assert_eq!(component["purl"], format!("pkg:cargo/{}", package.replace(' ', "@")));
        assert!(component["licenses"][0]["expression"].as_str().is_some_and(|it| !it.is_empty()), "{package}");
    }
    let listed: BTreeSet<&str> =
        bill["dependencies"].as_array().unwrap().iter().map(|of| of["ref"].as_str().unwrap()).collect();
    assert_eq!(listed.len(), components.len() + 1, "each is listed with what it depends on");
    assert!(!components.keys().any(|package| package.starts_with("criterion ")), "what only tests use is listed");
}

#[test]
fn the_image_runs_as_nobody_and_is_built_of_the_locked_sources_alone() {
    let file = repository("examples/docker/Dockerfile").replace("\\\n", " ");
    let lines: Vec<&str> = file.lines().filter(|line| !line.starts_with('#')).collect();
    let last = lines.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    assert!(last > 0, "there is one stage only");
    let (build, image) = lines.split_at(last);
    assert_eq!(build.iter().filter(|line| **line == "RUN .ci/dist").count(), 1, "{build:?}");
    let script = repository(".ci/dist");
    let builds: Vec<_> = script.lines().filter(|line| line.contains("cargo build") && !line.starts_with('#')).collect();
    assert!(builds.len() == 1 && builds[0].contains("--locked"), "{builds:?}");
    let value = |key: &str| {
        let found: Vec<_> = image.iter().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).collect();
        assert_eq!(found.len(), 1, "{key}: {found:?}");
        found[0].to_owned()
    };
    let (user, group) = value("USER").split_once(':').map(|(user, group)| (user.to_owned(), group.to_owned())).unwrap();
    assert!(user.parse::<u32>().unwrap() > 0 && group.parse::<u32>().unwrap() > 0);
    assert!(value("HEALTHCHECK").contains("CMD [\"countersign\", \"health\""));
    assert_eq!(value("ENTRYPOINT"), "[\"countersign\"]");
    assert_eq!(value("CMD"), "[\"run\", \"--config\", \"/etc/countersign/countersign.toml\"]");
    assert_eq!(value("VOLUME"), "/var/lib/countersign");
    // Nothing of this folder gets into the image but through the build.
    for line in image.iter().filter(|line| line.starts_with("COPY ") || line.starts_with("ADD ")) {
        assert!(line.starts_with("COPY --from=build "), "{line}");
    }
}

#[test]
fn what_the_image_is_built_of_is_enough_and_holds_no_secret() {
    let ignored = repository(".dockerignore");
    let mut lines = ignored.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    assert_eq!(lines.next(), Some("*"), "what is not named must be left out");
    let folder = tempfile::tempdir().unwrap();
    for line in lines {
        let name = line.strip_prefix('!').unwrap_or_else(|| panic!("{line}"));
        for private in ["certs", "config/", "state", "secrets", "target", ".git"] {
            assert!(!name.starts_with(private), "{name}");
        }
        let copy = format!("cp --parents --recursive {name} {}", folder.path().display());
        let copied = Command::new("sh").current_dir(root()).args(["-c", &copy]).output().unwrap();
        assert!(copied.status.success(), "{}", text(&copied.stderr));
    }
    let mut metadata = Command::new(env!("CARGO"));
    metadata.current_dir(folder.path()).args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let read = metadata.output().unwrap();
    assert!(read.status.success(), "{}", text(&read.stderr));
    assert!(text(&read.stdout).contains("custom-build"), "the build script is not there");
}

/// The objects of the Kubernetes example, by kind and name.
fn manifests() -> BTreeMap<String, Value> {
    let program = "import json, sys, yaml\n\
                   print(json.dumps([one for name in sys.argv[1:] for one in yaml.safe_load_all(open(name))]))";
    let folder = root().join("examples/kubernetes");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let output = Command::new("python3").args(["-c", program]).args(paths).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let key = |one: &Value| format!("{} {}", one["kind"].as_str().unwrap(), one["metadata"]["name"].as_str().unwrap());
    all.into_iter().map(|one| (key(&one), one)).collect()
}

fn kubernetes_config() -> toml::Table {
    manifests()["ConfigMap countersign"]["data"]["countersign.toml"].as_str().unwrap().parse().unwrap()
}

#[test]
fn the_pods_may_do_little_and_see_changes_of_what_they_mount() {
    let manifests = manifests();
    let set = &manifests["StatefulSet countersign"]["spec"];
    assert_eq!(set["replicas"], 2);
    let pod = &set["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["capabilities"], serde_json::json!({ "drop": ["ALL"] }));
    let mounts = container["volumeMounts"].as_array().unwrap();
    assert!(mounts.len() == 4 && mounts.iter().all(|mount| mount.get("subPath").is_none()), "{mounts:?}");
    let is_written = |mount: &&Value| mount["readOnly"] != true;
    let written: Vec<_> = mounts.iter().filter(is_written).map(|mount| &mount["mountPath"]).collect();
    assert_eq!(written, ["/var/lib/countersign"]);
    assert_eq!(set["volumeClaimTemplates"][0]["metadata"]["name"], "state", "the audit log must outlive its pod");
}

#[test]
fn the_pods_are_probed_at_the_operations_port_and_end_after_their_drain() {
    let manifests = manifests();
    let pod = &manifests["StatefulSet countersign"]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let config = kubernetes_config();
    let port =
        |table: &str| config[table]["address"].as_str().unwrap().rsplit(':').next().unwrap().parse::<u64>().unwrap();
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "operations");
    }
    let ports: BTreeMap<&str, u64> = container["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_u64().unwrap()))
        .collect();
    assert_eq!(ports, BTreeMap::from([("https", port("listener")), ("operations", port("operations"))]));
    let seconds =
        |key: &str| config["limits"][key].as_str().unwrap().strip_suffix('s').unwrap().parse::<u64>().unwrap();
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > seconds("drain") + seconds("drain_delay") + 5);
    assert!(container.get("lifecycle").is_none());
}

#[test]
fn the_objects_of_the_example_find_each_other() {
    let manifests = manifests();
    let set = &manifests["StatefulSet countersign"]["spec"];
    let labels = &set["template"]["metadata"]["labels"];
    for name in ["Service countersign", "Service countersign-pods"] {
        assert_eq!(manifests[name]["spec"]["selector"], *labels, "{name}");
    }
    assert_eq!(set["selector"]["matchLabels"], *labels);
    assert_eq!(manifests["PodDisruptionBudget countersign"]["spec"]["selector"]["matchLabels"], *labels);
    assert_eq!(manifests["NetworkPolicy countersign"]["spec"]["podSelector"]["matchLabels"], *labels);
    assert!(manifests.contains_key(&format!("Service {}", set["serviceName"].as_str().unwrap())));
    let outside = &manifests["Service countersign"]["spec"]["ports"];
    assert_eq!(outside.as_array().map(Vec::len), Some(1), "only the gateway itself is for the outside");
    assert_eq!(outside[0]["targetPort"], "https");
}

#[test]
fn the_configuration_of_the_kubernetes_example_loads() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), SECRET);
    let manifests = manifests();
    let text_of_map = manifests["ConfigMap countersign"]["data"]["countersign.toml"].as_str().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let config = text_of_map
        .replace("/run/countersign/tls/tls.crt", &at("cert.pem"))
        .replace("/run/countersign/tls/tls.key", &at("key.pem"))
        .replace("/run/countersign/secrets/shipping.absec", &at("secret"));
    assert!(!config.contains("/run/"), "{config}");
    // What is mounted where the configuration looks for it.
    let mounts =
        manifests["StatefulSet countersign"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].to_string();
    for folder in ["/run/countersign/tls", "/run/countersign/secrets", "/etc/countersign", "/var/lib/countersign"] {
        assert!(mounts.contains(&format!("\"{folder}\"")), "{folder}");
    }
    fs::write(at("countersign.toml"), config).unwrap();
    let output = ran(&["check", "--config", &at("countersign.toml")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}
