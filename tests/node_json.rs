//! Compares `json::Document` with the JSON of Node.js over random texts.
//!
//! Without `node` the comparison is skipped, unless `COUNTERSIGN_REQUIRE_NODE=1` makes that a failure.
//! `COUNTERSIGN_JSON_SEED` takes another seed than the usual one, to look further or to repeat a failure.
#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking, helpers included")]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use countersign::json::{Document, Error};

/// Of these more than 100,000 are documents that both print; the others are refused.
const TEXTS: usize = 120_000;
const SEED: u64 = 20_250_607;

#[test]
fn documents_are_refused_printed_and_called_lossy_as_node_does() {
    let seed = std::env::var("COUNTERSIGN_JSON_SEED").map_or(SEED, |seed| seed.parse().expect("a seed is a number"));
    let mut random = Random(seed);
    let texts: Vec<String> = (0..TEXTS).map(|_| text(&mut random)).collect();
    let Some(answers) = ask_node(&texts) else { return };
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), texts.len());

    let (mut printed, mut lossy, mut refused, mut banned) = (0, 0, 0, 0);
    let mut out = Vec::new();
    for (number, (text, answer)) in texts.iter().zip(answers).enumerate() {
        let context = || format!("text {number} of seed {seed}: {text:?}");
        let document = match Document::parse(text.as_bytes()) {
            Ok(document) => document,
            Err(Error::DuplicateKey | Error::TooDeep) => {
                banned += 1;
                continue;
            }
            Err(error) => {
                assert_eq!("refused", answer, "{error}, {}", context());
                refused += 1;
                continue;
            }
        };
        out.clear();
        out.extend_from_slice(if document.has_lossy_number() { b"lossy " } else { b"exact " });
        document.print(&mut out);
        assert_eq!(str::from_utf8(&out), Ok(answer), "{}", context());
        printed += 1;
        lossy += usize::from(document.has_lossy_number());
    }
    eprintln!(
        "compared {} JSON texts with node, seed {seed}: {printed} printed alike ({lossy} of them lossy), \
         {refused} refused by both; {banned} more fall under our own bans",
        printed + refused
    );
    assert!(printed >= 100_000 && lossy > TEXTS / 100 && refused > TEXTS / 100, "the texts test too little");
}

/// One line for each text; `None` where there is no node.
fn ask_node(texts: &[String]) -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/stringify.mjs");
    let spawned = Command::new("node").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut node = match spawned {
        Ok(node) => node,
        Err(error) => {
            assert!(
                std::env::var_os("COUNTERSIGN_REQUIRE_NODE").is_none_or(|it| it != "1"),
                "node is required: {error}"
            );
            eprintln!("SKIPPED: node not found ({error}); nothing was compared with JavaScript");
            return None;
        }
    };
    let mut stdin = node.stdin.take().expect("stdin is piped");
    let mut stdout = node.stdout.take().expect("stdout is piped");
    let mut answers = String::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            for text in texts {
                stdin.write_all(text.as_bytes()).and_then(|()| stdin.write_all(b"\0")).expect("node reads");
            }
        });
        stdout.read_to_string(&mut answers).expect("node writes UTF-8");
    });
    assert!(node.wait().expect("node ends").success());
    Some(answers)
}

/// `SplitMix64`, which is the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        let at = self.below(choices.len() as u64);
        choices[usize::try_from(at).expect("an index")]
    }
}

/// A document, every fifth time with a random fault.
fn text(random: &mut Random) -> String {
    let mut text = String::new();
    space(random, &mut text);
    if random.below(500) == 0 {
        let levels = 90 + random.below(20);
        (0..levels).for_each(|_| text.push('['));
        value(random, 1, &mut text);
        (0..levels).for_each(|_| text.push(']'));
    } else {
        value(random, 4, &mut text);
    }
    space(random, &mut text);
    if random.below(5) == 0 { with_fault(random, &text) } else { text }
}

/// `text` with a character left out, put in or replaced; now and then that is no fault.
fn with_fault(random: &mut Random, text: &str) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    let at = usize::try_from(random.below(characters.len() as u64)).expect("an index");
    let other = [
        '"', '\\', ',', ':', '{', '}', '[', ']', '0', '1', '-', '+', '.', 'e', 'u', 't', ' ', '\n', '\u{1f}', '/', 'é',
        '\u{a0}',
    ];
    let other = other[usize::try_from(random.below(other.len() as u64)).expect("an index")];
    match random.below(3) {
        0 => drop(characters.remove(at)),
        1 => characters.insert(at, other),
        _ => characters[at] = other,
    }
    characters.into_iter().collect()
}

fn value(random: &mut Random, depth: u64, text: &mut String) {
    match random.below(if depth == 0 { 7 } else { 11 }) {
        0 => text.push_str(random.pick(&["null", "true", "false"])),
        1..=3 => number(random, text),
        4..=6 => string(random, text),
        7 | 8 => list(random, text, ['[', ']'], |random, text| value(random, depth - 1, text)),
        _ => list(random, text, ['{', '}'], |random, text| {
            key(random, text);
            space(random, text);
            text.push(':');
            space(random, text);
            value(random, depth - 1, text);
        }),
    }
}

fn list(random: &mut Random, text: &mut String, [open, close]: [char; 2], item: impl Fn(&mut Random, &mut String)) {
    text.push(open);
    space(random, text);
    for number in 0..random.below(6) {
        if number > 0 {
            text.push(',');
            space(random, text);
        }
        item(random, text);
        space(random, text);
    }
    text.push(close);
}

fn key(random: &mut Random, text: &mut String) {
    match random.below(8) {
        0 | 1 => write!(text, "\"{}\"", random.below(20)).expect("writes"),
        2 => {
            let near = 4_294_967_290 + random.below(10);
            write!(text, "\"{near}\"").expect("writes");
        }
        3 => text.push_str(random.pick(&[
            r#""\u0031""#,
            r#""1\u0030""#,
            r#""01""#,
            r#""-1""#,
            r#""1.0""#,
            r#""__proto__""#,
            r#""constructor""#,
            r#""""#,
            r#""9007199254740991""#,
            r#""9007199254740992""#,
            r#""18446744073709551615""#,
            r#""1e3""#,
            r#""length""#,
            r#""toJSON""#,
        ])),
        4 => {
            let letter = random.below(26);
            write!(text, "\"k{letter}\"").expect("writes");
        }
        _ => string(random, text),
    }
}

fn number(random: &mut Random, text: &mut String) {
    match random.below(8) {
        // Every bit pattern that is finite, in the spelling of Rust or with all its digits.
        0 | 1 => {
            let value = f64::from_bits(random.next());
            let value = if value.is_finite() { value } else { 0.5 };
            match random.below(3) {
                0 => write!(text, "{value:e}").expect("writes"),
                1 => write!(text, "{value:.20e}").expect("writes"),
                _ => write!(text, "{value:.16E}").expect("writes"),
            }
        }
        2 => write!(text, "{}", random.next() >> random.below(64)).expect("writes"),
        // Around 2^53, where integers stop to be exact.
        3 => write!(text, "{}", 9_007_199_254_740_980 + random.below(30)).expect("writes"),
        4 => {
            let cents = random.below(1_000_000);
            write!(text, "{}.{:02}", cents / 100, cents % 100).expect("writes");
        }
        5 => text.push_str(random.pick(&[
            "0",
            "-0",
            "0.0",
            "-0.0",
            "0e999",
            "-0e-999",
            "1.0",
            "1e20",
            "1e21",
            "1e-6",
            "1e-7",
            "0.000001",
            "0.0000001",
            "1e400",
            "-1e400",
            "1e-400",
            "5e-324",
            "2e-324",
            "3e-324",
            "1.7976931348623157e308",
            "1.7976931348623159e308",
            "1e99999999999999999999",
            "1e-99999999999999999999",
            "0e99999999999999999999",
            "0.1",
            "1e23",
            "1E5",
            "1E+05",
            "100000000000000000000",
            "999999999999999900000",
            "1000000000000000000000",
            "123456789012345678901234",
            "0.30000000000000004",
            "999999999999999",
            "9999999999999999",
            "0.99999999999999",
            "0.999999999999999999",
            "2.2250738585072011e-308",
            "2.2250738585072014e-308",
            "9007199254740993.0",
            "900719925474099.3e1",
        ])),
        _ => {
            text.push_str(random.pick(&["", "-"]));
            let length = 1 + random.below(25);
            let whole = if random.below(3) == 0 { "0".to_owned() } else { digits(random, length) };
            let significant = whole.trim_start_matches('0');
            text.push_str(if significant.is_empty() { "0" } else { significant });
            if random.below(2) == 0 {
                let length = 1 + random.below(25);
                write!(text, ".{}", digits(random, length)).expect("writes");
            }
            if random.below(2) == 0 {
                text.push_str(random.pick(&["e", "E", "e+", "E-", "e-", "e00", "e-0"]));
                let size = 1 + random.below(3);
                text.push_str(&digits(random, size));
            }
        }
    }
}

/// `length` digits, many of them zeros at the ends.
fn digits(random: &mut Random, length: u64) -> String {
    let (leading, trailing) = (random.below(length + 1), random.below(length + 1));
    let (ragged, any) = (random.below(2) == 0, random.below(2) == 0);
    (0..length)
        .map(|at| {
            let is_zero = (ragged && at < leading) || (any && at >= trailing);
            if is_zero { '0' } else { char::from(b'0' + u8::try_from(random.below(10)).expect("a digit")) }
        })
        .collect()
}

fn string(random: &mut Random, text: &mut String) {
    text.push('"');
    for _ in 0..random.below(12) {
        match random.below(10) {
            0 => text.push_str(random.pick(&["\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"])),
            1 => escape(random, 0..0x100, text),
            2 => escape(random, 0..0x1_0000, text),
            3 => escape(random, 0xd800..0xdc00, text),
            4 => escape(random, 0xdc00..0xe000, text),
            5 => {
                escape(random, 0xd800..0xdc00, text);
                escape(random, 0xdc00..0xe000, text);
            }
            6 => text.push_str(random.pick(&[
                "é",
                "€",
                "😀",
                "\u{2028}",
                "\u{2029}",
                "\u{7f}",
                "\u{80}",
                "\u{feff}",
                "\u{ffff}",
                "\u{10ffff}",
            ])),
            _ => text.push_str(random.pick(&["a", "usr_", " ", "u0041", "/", "0", "plain text of some length"])),
        }
    }
    text.push('"');
}

/// A `\u` escape from `range` in upper, lower or mixed case.
fn escape(random: &mut Random, range: std::ops::Range<u64>, text: &mut String) {
    let unit = range.start + random.below(range.end - range.start);
    text.push_str("\\u");
    for digit in format!("{unit:04x}").chars() {
        text.push(if random.below(2) == 0 { digit.to_ascii_uppercase() } else { digit });
    }
}

fn space(random: &mut Random, text: &mut String) {
    text.push_str(random.pick(&["", "", "", "", "", " ", "\n", "\r\n\t", "    "]));
}
