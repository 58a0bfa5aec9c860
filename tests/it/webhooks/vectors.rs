//! Webhooks that Stripe's own libraries signed, through a real TLS socket.

use std::collections::HashMap;

use countersign::{clock::Clock, mailroom::Opened, record::Log, server};
use serde_json::Value;

use super::posted;
use crate::support::{Gateway, load, write_files};

const VECTORS: &str = include_str!("../../vectors/stripe-webhooks.json");

/// Holds rule 6: the bytes of an event are verified as Stripe signed them, and the libraries agree.
#[test]
fn all_31_vectors_of_stripe_s_libraries_hold_through_the_socket() {
    let file: Value = serde_json::from_str(VECTORS).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 31);
    let mut by_secrets: HashMap<String, Vec<&Value>> = HashMap::new();
    for vector in vectors {
        by_secrets.entry(vector["secrets"].to_string()).or_default().push(vector);
    }
    let wrong: Vec<String> = by_secrets.values().flat_map(|vectors| judged(vectors)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Stripe's libraries refuse whatever is refused here, but for the future.
    for vector in vectors {
        let is_taken = vector["expect"] == "accepted" || vector["expect"] == "timestamp_future";
        assert_eq!(vector["library"] == "ok", is_taken, "{}", vector["name"]);
    }
}

/// Those of the vectors, which have the same secrets, that do not hold.
fn judged(vectors: &[&Value]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), "unused");
    let secrets = vectors[0]["secrets"].as_array().unwrap();
    let mut references = Vec::new();
    for (number, secret) in secrets.iter().enumerate() {
        std::fs::write(folder.path().join(format!("whsec{number}")), secret.as_str().unwrap()).unwrap();
        references.push(format!("{{ file = \"whsec{number}\" }}"));
    }
    let config = load(
        folder.path(),
        "certificate = \"cert.pem\"\nprivate_key = \"key.pem\"\n",
        &format!(
            "[[webhooks]]\npath = \"/in\"\nsecrets = [{}]\ndeliver = [{{ name = \"none\", to = \"http://127.0.0.1:9/\", types = [\"no.such\"] }}]\n",
            references.join(", ")
        ),
    );
    let (log, _) = Log::start(Box::new(std::io::sink())).unwrap();
    let mailroom = Opened::new(config.inbox.clone()).unwrap();
    let mailroom = mailroom.deliver(Vec::new(), (log, None), "test".into(), Clock::System).unwrap();
    let settings = server::Settings { workers: Some(1), intake: Some(mailroom.intake()), ..config.into() };
    let gateway = Gateway::start(settings, folder);
    let mut wrong = Vec::new();
    for vector in vectors {
        gateway.set_time(vector["now"].as_i64().unwrap());
        // Each event is a new one for the gateway only if it has not come before.
        let answer = gateway.ask(posted("/in", vector["body"].as_str().unwrap(), vector["header"].as_str().unwrap()));
        let outcome = answer.json()["outcome"].as_str().map(|outcome| outcome.replace("duplicate", "accepted"));
        let found = outcome.unwrap_or_else(|| answer.code());
        let status = if vector["expect"] == "accepted" { 200 } else { 400 };
        if vector["expect"] != found.as_str() || answer.status != status {
            wrong.push(format!("{}: {} {found}", vector["name"], answer.status));
        }
    }
    drop(gateway);
    mailroom.finish();
    wrong
}
