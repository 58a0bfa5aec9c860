//! Reads every input a second time, naively, and wants the same verdict and the same print.
//!
//! The second reader below shares no line with `countersign::json`: it builds an owned tree of UTF-16 strings, as
//! JavaScript does, and writes numbers out of the digits that Rust's own formatter finds.
#![no_main]

use countersign::json::{Document, Error};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let naive = naive::parse(text);
    let document = match (Document::parse(text), &naive) {
        (Ok(document), Ok(_)) => document,
        (Err(error), Err(fault)) => return assert_eq!(verdict(error), *fault),
        (Ok(_), Err(fault)) => panic!("accepted what the naive reader refuses: {fault:?}"),
        (Err(error), Ok(_)) => panic!("refused what the naive reader accepts: {error}"),
    };
    let naive = naive.expect("both accepted");

    let mut printed = Vec::new();
    document.print(&mut printed);
    assert_eq!(printed, naive.print().into_bytes());
    assert_eq!(document.has_lossy_number(), naive.is_lossy());
    assert_eq!(document.is_object(), naive.without(&[]).is_some());

    let again = Document::parse(&printed).expect("a print is a document");
    let mut twice = Vec::new();
    again.print(&mut twice);
    assert_eq!(printed, twice);
    assert!(!again.has_lossy_number());

    let last = [("user_id", "usr_1"), ("a", "acct_1")];
    if let Some(mut rest) = naive.without(&last.map(|(key, _)| key)) {
        rest.extend(last.map(|(key, value)| (naive::units(key), naive::Value::String(naive::units(value)))));
        let mut moved = Vec::new();
        document.print_with_last(&last, &mut moved);
        assert_eq!(moved, naive::Value::Object(rest).print().into_bytes());
    }
});

fn verdict(error: Error) -> naive::Fault {
    match error {
        Error::Utf8 => naive::Fault::Utf8,
        Error::ByteOrderMark => naive::Fault::ByteOrderMark,
        // Which of these comes first in a text that has several is nobody's concern.
        Error::Syntax { .. } | Error::DuplicateKey | Error::TooDeep => naive::Fault::Other,
    }
}

mod naive {
    #[derive(Debug, PartialEq, Eq)]
    pub enum Fault {
        Utf8,
        ByteOrderMark,
        Other,
    }

    pub enum Value {
        Word(&'static str),
        Number(String),
        String(Vec<u16>),
        Array(Vec<Value>),
        Object(Vec<(Vec<u16>, Value)>),
    }

    pub fn units(text: &str) -> Vec<u16> {
        text.encode_utf16().collect()
    }

    pub fn parse(text: &[u8]) -> Result<Value, Fault> {
        let text = String::from_utf8(text.to_vec()).map_err(|_| Fault::Utf8)?;
        if text.starts_with('\u{feff}') {
            return Err(Fault::ByteOrderMark);
        }
        let mut reader = Reader { rest: text.chars().rev().collect() };
        let value = reader.value(0).ok_or(Fault::Other)?;
        if reader.rest.is_empty() { Ok(value) } else { Err(Fault::Other) }
    }

    /// The characters that are left, the next one last.
    struct Reader {
        rest: Vec<char>,
    }

    impl Reader {
        fn next_if(&mut self, wanted: impl Fn(char) -> bool) -> Option<char> {
            if self.rest.last().is_some_and(|&next| wanted(next)) { self.rest.pop() } else { None }
        }

        fn eat(&mut self, text: &str) -> Option<()> {
            text.chars().try_for_each(|wanted| self.next_if(|next| next == wanted).map(drop))
        }

        fn space(&mut self) {
            while self.next_if(|next| " \t\r\n".contains(next)).is_some() {}
        }

        /// A value with the space around it, inside of `depth` others.
        fn value(&mut self, depth: usize) -> Option<Value> {
            self.space();
            let value = match *self.rest.last()? {
                'n' => self.eat("null").map(|()| Value::Word("null"))?,
                't' => self.eat("true").map(|()| Value::Word("true"))?,
                'f' => self.eat("false").map(|()| Value::Word("false"))?,
                '"' => Value::String(self.string()?),
                '[' => Value::Array(self.list(depth, "[", "]", |reader| reader.value(depth + 1))?),
                '{' => {
                    let members = self.list(depth, "{", "}", |reader| {
                        reader.space();
                        let key = reader.string()?;
                        reader.space();
                        reader.eat(":")?;
                        Some((key, reader.value(depth + 1)?))
                    })?;
                    let mut keys: Vec<_> = members.iter().map(|(key, _)| key).collect();
                    keys.sort();
                    if keys.windows(2).any(|pair| pair[0] == pair[1]) {
                        return None;
                    }
                    Value::Object(members)
                }
                _ => Value::Number(self.number()?),
            };
            self.space();
            Some(value)
        }

        fn list<T>(
            &mut self,
            depth: usize,
            open: &str,
            close: &str,
            item: impl Fn(&mut Self) -> Option<T>,
        ) -> Option<Vec<T>> {
            if depth == 100 {
                return None;
            }
            self.eat(open)?;
            self.space();
            let mut items = Vec::new();
            while self.eat(close).is_none() {
                if !items.is_empty() {
                    self.eat(",")?;
                }
                items.push(item(self)?);
                self.space();
            }
            Some(items)
        }

        fn string(&mut self) -> Option<Vec<u16>> {
            self.eat("\"")?;
            let mut units = Vec::new();
            loop {
                match self.rest.pop()? {
                    '"' => return Some(units),
                    '\\' => units.push(match self.rest.pop()? {
                        'b' => 8,
                        't' => 9,
                        'n' => 10,
                        'f' => 12,
                        'r' => 13,
                        'u' => (0..4).try_fold(0, |unit, _| Some(unit * 16 + self.rest.pop()?.to_digit(16)? as u16))?,
                        itself @ ('"' | '\\' | '/') => itself as u16,
                        _ => return None,
                    }),
                    ..' ' => return None,
                    other => units.extend_from_slice(other.encode_utf16(&mut [0; 2])),
                }
            }
        }

        fn number(&mut self) -> Option<String> {
            let mut text = String::new();
            text.extend(self.next_if(|next| next == '-'));
            match self.next_if(|next| next == '0') {
                Some(zero) => text.push(zero),
                None => self.digits(&mut text)?,
            }
            if let Some(point) = self.next_if(|next| next == '.') {
                text.push(point);
                self.digits(&mut text)?;
            }
            if self.next_if(|next| next == 'e' || next == 'E').is_some() {
                text.push('e');
                text.extend(self.next_if(|next| next == '+' || next == '-'));
                self.digits(&mut text)?;
            }
            Some(text)
        }

        fn digits(&mut self, text: &mut String) -> Option<()> {
            let before = text.len();
            while let Some(digit) = self.next_if(|next| next.is_ascii_digit()) {
                text.push(digit);
            }
            (text.len() > before).then_some(())
        }
    }

    impl Value {
        pub fn print(&self) -> String {
            match self {
                Self::Word(word) => (*word).to_owned(),
                Self::Number(literal) => print_number(literal),
                Self::String(units) => print_string(units),
                Self::Array(items) => {
                    format!("[{}]", items.iter().map(Self::print).collect::<Vec<_>>().join(","))
                }
                Self::Object(members) => {
                    let (mut indexed, mut named) = (Vec::new(), Vec::new());
                    for (key, value) in members {
                        let member = format!("{}:{}", print_string(key), value.print());
                        match index(key) {
                            Some(index) => indexed.push((index, member)),
                            None => named.push(member),
                        }
                    }
                    indexed.sort();
                    let printed: Vec<_> = indexed.into_iter().map(|(_, member)| member).chain(named).collect();
                    format!("{{{}}}", printed.join(","))
                }
            }
        }

        pub fn is_lossy(&self) -> bool {
            match self {
                Self::Word(_) | Self::String(_) => false,
                Self::Number(literal) => {
                    let printed = print_number(literal);
                    printed == "null" || exact(&printed) != exact(literal)
                }
                Self::Array(items) => items.iter().any(Self::is_lossy),
                Self::Object(members) => members.iter().any(|(_, value)| value.is_lossy()),
            }
        }

        /// The members of an object but those with one of `keys`.
        pub fn without(&self, keys: &[&str]) -> Option<Vec<(Vec<u16>, Value)>> {
            let Self::Object(members) = self else { return None };
            let rest = members.iter().filter(|(key, _)| keys.iter().all(|other| *key != units(other)));
            Some(rest.map(|(key, value)| (key.clone(), value.copy())).collect())
        }

        fn copy(&self) -> Value {
            match self {
                Self::Word(word) => Self::Word(word),
                Self::Number(literal) => Self::Number(literal.clone()),
                Self::String(units) => Self::String(units.clone()),
                Self::Array(items) => Self::Array(items.iter().map(Self::copy).collect()),
                Self::Object(members) => {
                    Self::Object(members.iter().map(|(key, value)| (key.clone(), value.copy())).collect())
                }
            }
        }
    }

    fn index(key: &[u16]) -> Option<u64> {
        let index = String::from_utf16(key).ok()?.parse::<u64>().ok()?;
        (index < 4_294_967_295 && units(&index.to_string()) == key).then_some(index)
    }

    fn print_string(units: &[u16]) -> String {
        let mut text = String::from("\"");
        for unit in char::decode_utf16(units.iter().copied()) {
            match unit {
                Ok('"') => text.push_str("\\\""),
                Ok('\\') => text.push_str("\\\\"),
                Ok('\u{8}') => text.push_str("\\b"),
                Ok('\t') => text.push_str("\\t"),
                Ok('\n') => text.push_str("\\n"),
                Ok('\u{c}') => text.push_str("\\f"),
                Ok('\r') => text.push_str("\\r"),
                Ok(control @ ..' ') => text.push_str(&format!("\\u{:04x}", control as u32)),
                Ok(other) => text.push(other),
                Err(lone) => text.push_str(&format!("\\u{:04x}", lone.unpaired_surrogate())),
            }
        }
        text + "\""
    }

    /// ECMA-262, Number::toString, step by step: the value is 0.DIGITS times ten to the power of n.
    fn print_number(literal: &str) -> String {
        let value: f64 = literal.parse().expect("a number");
        if value == 0.0 {
            return "0".to_owned();
        }
        if value.is_infinite() {
            return "null".to_owned();
        }
        let scientific = format!("{:e}", value.abs());
        let (mantissa, exponent) = scientific.split_once('e').expect("an exponent");
        let digits = to_even(value.abs(), mantissa.replace('.', ""));
        let k = digits.len() as i32;
        let n = exponent.parse::<i32>().expect("an exponent") + 1;
        let zeros = |count: i32| "0".repeat(count as usize);
        let unsigned = if k <= n && n <= 21 {
            digits + &zeros(n - k)
        } else if 0 < n && n <= 21 {
            format!("{}.{}", &digits[..n as usize], &digits[n as usize..])
        } else if -6 < n && n <= 0 {
            format!("0.{}{digits}", zeros(-n))
        } else {
            let point = if k == 1 { "" } else { "." };
            format!("{}{point}{}e{:+}", &digits[..1], &digits[1..], n - 1)
        };
        if value < 0.0 { format!("-{unsigned}") } else { unsigned }
    }

    /// `digits`, or the even neighbour below where both are as short and `value` lies exactly between them.
    ///
    /// Rust rounds such a value up, JavaScript's engines to the even digit: 88881888880116.125 to ...16.12.
    fn to_even(value: f64, digits: String) -> String {
        let below = (digits.parse::<u64>().expect("at most 17 digits") - 1).to_string();
        let exact = format!("{value:.800e}");
        let (mantissa, exponent) = exact.split_once('e').expect("an exponent");
        let is_between = mantissa.replace('.', "").trim_end_matches('0') == format!("{below}5");
        let is_odd = digits.ends_with(['1', '3', '5', '7', '9']);
        let is_read_back = || format!("{}.{}e{exponent}", &below[..1], &below[1..]).parse() == Ok(value);
        if is_odd && below.len() > 1 && is_between && is_read_back() { below } else { digits }
    }

    /// The digits of a literal without zeros around them, and where the point belongs.
    fn exact(literal: &str) -> (String, i128) {
        let (mantissa, exponent) =
            literal.trim_start_matches('-').split_once('e').unwrap_or((literal.trim_start_matches('-'), "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let significant = digits.trim_start_matches('0');
        if significant.is_empty() {
            return (String::new(), 0);
        }
        // An exponent too long for this type is far out of the range of numbers either way.
        let exponent = exponent.parse::<i128>().unwrap_or(i128::MAX / 2);
        let point = whole.len() as i128 - (digits.len() - significant.len()) as i128 + exponent;
        (significant.trim_end_matches('0').to_owned(), point)
    }
}
