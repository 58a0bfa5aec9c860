//! The tutorial's three parts together: the panel's own code calls its internal service through a gateway with the
//! example's configuration.
//!
//! Without node or the panel's packages this is skipped, unless `COUNTERSIGN_REQUIRE_NODE=1` makes that a failure.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    commands::{Running, countersign, free_port, wait_for},
    support::{SECRET, USER, write_files},
};

const ACCOUNT: &str = "acct_1JSkf6FRwUQjTSJE";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// TypeScript's compiler, among the packages of the panel.
fn compiler() -> Option<PathBuf> {
    let compiler = repository().join("examples/order-panel/node_modules/typescript/bin/tsc");
    if compiler.exists() && Command::new("node").arg("--version").stdout(Stdio::null()).status().is_ok() {
        return Some(compiler);
    }
    assert!(std::env::var_os("COUNTERSIGN_REQUIRE_NODE").is_none(), "no node, or no packages: run .ci/test");
    eprintln!("SKIPPED: no node, or no packages in examples/order-panel; .ci/test installs them");
    None
}

fn compile(compiler: &Path, arguments: &[&str]) {
    let output = Command::new("node")
        .arg(compiler)
        .args(arguments)
        .current_dir(repository().join("examples/order-panel"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn changed(file: &str, changes: &[(&str, String)]) -> String {
    let mut text = fs::read_to_string(repository().join(file)).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{file} has no {from}");
        text = text.replace(from, to);
    }
    text
}

#[test]
fn the_panel_fits_the_types_of_stripe_s_sdk() {
    let Some(compiler) = compiler() else { return };
    compile(&compiler, &["--noEmit"]);
}

#[test]
fn the_panel_reads_and_writes_through_the_example_s_gateway() {
    let Some(compiler) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_files(folder.path(), SECRET);
    let (port, service) = (free_port(), free_port());

    fs::write(
        at("server.mjs"),
        changed("examples/orders-service/server.mjs", &[("PORT = 8080", format!("PORT = {service}"))]),
    )
    .unwrap();
    let changes = [
        ("0.0.0.0:8443", format!("127.0.0.1:{port}")),
        ("certs/gateway.pem", "cert.pem".to_owned()),
        ("certs/gateway.key", "key.pem".to_owned()),
        ("gateway.example.com", "127.0.0.1".to_owned()),
        ("secrets/shipping.absec", "secret".to_owned()),
        ("127.0.0.1:8080", format!("127.0.0.1:{service}")),
    ];
    fs::write(at("countersign.toml"), changed("examples/countersign.toml", &changes)).unwrap();
    let url = [("https://gateway.example.com:8443/", format!("https://127.0.0.1:{port}/"))];
    let panel = changed("examples/order-panel/src/gateway.ts", &url);
    let packages = at("node_modules/@stripe/ui-extension-sdk");
    fs::create_dir_all(&packages).unwrap();
    fs::write(packages.join("package.json"), r#"{"type":"module","exports":{"./utils":"./utils.mjs"}}"#).unwrap();
    fs::copy(repository().join("tests/examples/fetchStripeSignature.mjs"), packages.join("utils.mjs")).unwrap();
    fs::copy(repository().join("tests/examples/panel.mjs"), at("panel.mjs")).unwrap();
    fs::write(at("package.json"), r#"{"type":"module"}"#).unwrap();
    fs::write(at("gateway.ts"), panel).unwrap();
    let (source, target) = (at("gateway.ts"), folder.path().to_string_lossy().into_owned());
    let options =
        ["--noCheck", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler", "--outDir", &target];
    compile(&compiler, &[&options[..], &[&*source.to_string_lossy()]].concat());

    let service_log = Stdio::null();
    let _service = Running(Command::new("node").arg(at("server.mjs")).stdout(service_log).spawn().unwrap());
    let _gateway = Running(
        countersign()
            .args(["run", "--config", &at("countersign.toml").to_string_lossy()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_for(service);
    wait_for(port);
    let output = Command::new("node")
        .arg(at("panel.mjs"))
        .env("NODE_EXTRA_CA_CERTS", at("cert.pem"))
        .envs([("SECRET", SECRET), ("USER_ID", USER), ("ACCOUNT_ID", ACCOUNT)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let got: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(got["read"]["status"], "packed", "{got:#}");
    assert_eq!(got["written"]["notes"][0]["text"], "it's 1 < 2 – sent", "{got:#}");
    assert_eq!(got["written"]["notes"][0]["by"], format!("{USER} (admin)"));
    assert!(got["stranger"]["explained"].as_str().unwrap().contains("signature_mismatch"), "{got:#}");
}
