//! A document of orders.

use std::fmt::Write as _;

/// An object of about `bytes` bytes, as `JSON.stringify` prints it.
pub(crate) fn body(bytes: usize) -> String {
    let mut text = String::from(r#"{"user_id":"usr_BenchUser0000001","account_id":"acct_BenchAccount0001","items":["#);
    let mut place = 0;
    while text.len() + 100 < bytes || place == 0 {
        let comma = if place == 0 { "" } else { "," };
        let _ = write!(
            text,
            r#"{comma}{{"id":"ch_{place:08}","amount":{},"rate":0.{place}5,"note":"réf. \"{place}\"","paid":true}}"#,
            place * 37
        );
        place += 1;
    }
    text + "]}"
}
