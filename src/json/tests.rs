use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Document<'_>, Error> {
    Document::parse(text.as_bytes())
}

fn document(text: &str) -> Document<'_> {
    parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> Error {
    parse(text).map(drop).expect_err(text)
}

fn printed(text: &str) -> String {
    let mut out = Vec::new();
    document(text).print(&mut out);
    String::from_utf8(out).unwrap()
}

fn printed_with_last(text: &str, last: &[(&str, &str)]) -> String {
    let mut out = Vec::new();
    document(text).print_with_last(last, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn text_that_is_not_strictly_json_is_refused_where_it_goes_wrong() {
    for (text, offset) in [
        ("", 0),
        (" ", 1),
        ("{", 1),
        ("[", 1),
        ("[1", 2),
        ("[1,", 3),
        ("[1,]", 3),
        ("[,1]", 1),
        ("[1 2]", 3),
        ("[1}", 2),
        ("]", 0),
        ("{\"a\"}", 4),
        ("{\"a\":}", 5),
        ("{\"a\":1,}", 7),
        ("{\"a\":1 \"b\":2}", 7),
        ("{a:1}", 1),
        ("{1:1}", 1),
        ("{'a':1}", 1),
        ("1 1", 2),
        ("{}x", 2),
        ("{}\0", 2),
        ("tru", 3),
        ("True", 0),
        ("nul]", 3),
        ("truee", 4),
        ("NaN", 0),
        ("Infinity", 0),
        ("-Infinity", 1),
        ("+1", 0),
        (".5", 0),
        ("01", 1),
        ("0x10", 1),
        ("1.", 2),
        ("1e", 2),
        ("\"", 1),
        ("\"abc", 4),
        ("\"\\", 2),
        ("\"\\\"", 3),
        ("\"\\x41\"", 2),
        ("\"\\U0041\"", 2),
        ("\"\\u004\"", 6),
        ("\"\\u+041\"", 3),
        ("\"a\tb\"", 2),
        ("\"a\nb\"", 2),
        ("\"a\0b\"", 2),
        ("\"a\u{1f}b\"", 2),
        ("// a\n1", 0),
        ("/**/1", 0),
        ("\u{a0}1", 0),
        ("\u{b}1", 0),
        ("\u{c}1", 0),
        ("\u{2028}1", 0),
        ("1\u{feff}", 1),
    ] {
        assert_eq!(refusal(text), Error::Syntax { offset }, "{text:?}");
    }
}

#[test]
fn strict_json_is_accepted_whatever_the_root() {
    for text in
        ["0", "-1.5e+3", "\"\"", "null", "true", "false", "[]", "{}", "[[],{}]", "{\"\":{\"\":[]}}", " \t\r\n1\n"]
    {
        assert!(parse(text).is_ok(), "{text:?}");
    }
}

#[test]
fn byte_order_mark_is_refused_in_front_and_is_text_within_a_string() {
    assert_eq!(refusal("\u{feff}{}"), Error::ByteOrderMark);
    assert_eq!(printed("\"\u{feff}\""), "\"\u{feff}\"");
}

#[test]
fn bytes_that_are_not_utf8_are_refused_wherever_they_stand() {
    for text in [
        &b"\"\xff\""[..],
        b"\"\xc0\xaf\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xf4\x90\x80\x80\"",
        b"\"\xe2\x82\"",
        b"{\"\x80\":1}",
        b"1\xff",
        b"\xff\xfe1\x00",
    ] {
        assert_eq!(Document::parse(text).map(drop), Err(Error::Utf8), "{text:?}");
    }
    assert!(Document::parse(b"\"\xe2\x82\xac\"").is_ok());
}

#[test]
fn key_that_comes_twice_in_one_object_is_refused_at_any_depth() {
    for text in [
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"b":2,"a":3}"#,
        r#"{"":1,"":2}"#,
        r#"[[{"x":{"a":1,"a":2}}]]"#,
        r#"{"a":{"b":1,"b":2},"c":3}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"\u0061":1,"a":2}"#,
        r#"{"/":1,"\/":2}"#,
        r#"{"\n":1,"\u000a":2}"#,
        r#"{"😀":1,"\ud83d\ude00":2}"#,
        r#"{"\ud83d":1,"\uD83D":2}"#,
        r#"{"1":1,"\u0031":2}"#,
        r#"{"__proto__":1,"__proto__":2}"#,
    ] {
        assert_eq!(refusal(text), Error::DuplicateKey, "{text}");
    }
}

#[test]
fn keys_that_only_look_alike_are_accepted() {
    for text in [
        r#"{"a":1,"A":1}"#,
        r#"{"a":{"a":{"a":1}}}"#,
        r#"{"a":{"b":1},"b":{"a":1}}"#,
        r#"[{"a":1},{"a":1}]"#,
        r#"{"a":"a"}"#,
        r#"{"\u00e9":1,"e\u0301":2}"#,
        r#"{"1":1,"01":2,"1.0":3}"#,
        r#"{"\ud83d":1,"\ud83e":2}"#,
        r#"{"\ud83d":1,"\ufffd":2}"#,
        r#"{"\ud83d":1,"\\ud83d":2}"#,
        r#"{"a":1,"a\u0000":2}"#,
    ] {
        assert!(parse(text).is_ok(), "{text}");
    }
}

#[test]
fn key_that_comes_twice_among_many_is_refused() {
    for count in [15, 16, 17, 18, 1000] {
        let mut members: Vec<_> = (0..count).map(|number| format!("\"k{number}\":{number}")).collect();
        assert!(parse(&format!("{{{}}}", members.join(","))).is_ok(), "{count}");
        members.push(r#""\u006b3":0"#.to_owned());
        assert_eq!(refusal(&format!("{{{}}}", members.join(","))), Error::DuplicateKey, "{count}");
    }
}

#[test]
fn hundred_levels_are_accepted_and_one_more_is_not() {
    let nested = |open: &str, close: &str, levels: usize| format!("{}1{}", open.repeat(levels), close.repeat(levels));
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[ ", " ]")] {
        assert!(parse(&nested(open, close, 100)).is_ok());
        assert_eq!(refusal(&nested(open, close, 101)), Error::TooDeep);
    }
    assert_eq!(refusal(&"[".repeat(1_000_000)), Error::TooDeep);
    assert_eq!(refusal(&"[".repeat(100)), Error::Syntax { offset: 100 });
    assert!(parse(&format!("[{}]", vec!["[[]]"; 1000].join(","))).is_ok(), "levels are not counted side by side");
}

#[test]
fn value_that_javascript_would_spell_so_is_printed_byte_for_byte() {
    for text in [
        r#"{"user_id":"usr_1","account_id":"acct_1","n":[1,-2.5,0.1,true,false,null,{}],"s":"a\"b\\c\n\t\r\b\f/é😀"}"#,
        "\"\u{7f}\u{2028}\u{2029}\u{feff}\"",
        r#"["\ud83d","\udeadx","\u0000\u001f"]"#,
        r#"{"0":0,"1":1,"a":2,"01":3,"4294967295":4,"-1":5}"#,
        "[]",
    ] {
        assert_eq!(printed(text), text);
    }
}

#[test]
fn space_between_values_is_not_printed() {
    assert_eq!(printed(" { \"a b\" : [ 1 , 2 ] ,\r\n\t\"c\" : { } } "), r#"{"a b":[1,2],"c":{}}"#);
    assert_eq!(printed("[ ]"), "[]");
    assert_eq!(printed("[[1, 2], [3,4]]"), "[[1,2],[3,4]]");
}

#[test]
fn string_is_printed_with_the_fewest_escapes() {
    for (text, expected) in [
        (r#""\/\u002f\u0041""#, r#""//A""#),
        (r#""\u00e9\u00E9""#, r#""éé""#),
        (r#""\u2028\u2029\u007f""#, "\"\u{2028}\u{2029}\u{7f}\""),
        (r#""\u0008\u0009\u000a\u000c\u000d\u0022\u005c""#, r#""\b\t\n\f\r\"\\""#),
        (r#""\u000B\u001F\u0000""#, r#""\u000b\u001f\u0000""#),
        (r#""\uD83D\uDE00""#, r#""😀""#),
        (r#""\uDEAD""#, r#""\udead""#),
        (r#""\uDE00\uD83D""#, r#""\ude00\ud83d""#),
        (r#""\uD83D\uD83D\uDE00\uDE00""#, r#""\ud83d😀\ude00""#),
        (r#""\uD83D\u0041""#, r#""\ud83dA""#),
        (r#""\uD83D\n""#, r#""\ud83d\n""#),
        (r#""\uD83D😀""#, r#""\ud83d😀""#),
        (r#""\uD83D\\uDE00""#, r#""\ud83d\\uDE00""#),
        (r#""\uDBFF\uDFFF\uFFFF""#, "\"\u{10ffff}\u{ffff}\""),
    ] {
        assert_eq!(printed(text), expected, "{text}");
    }
}

#[test]
fn integer_keys_are_printed_first_and_ascending_at_every_level() {
    for (text, expected) in [
        (r#"{"b":1,"2":2,"a":3,"10":4,"1":5}"#, r#"{"1":5,"2":2,"10":4,"b":1,"a":3}"#),
        (r#"{"1":1,"0":0}"#, r#"{"0":0,"1":1}"#),
        (r#"[{"a":{"x":1,"7":2}}]"#, r#"[{"a":{"7":2,"x":1}}]"#),
        (r#"{"x":0,"4294967294":1}"#, r#"{"4294967294":1,"x":0}"#),
        (r#"{"x":0,"4294967295":1}"#, r#"{"x":0,"4294967295":1}"#),
        (r#"{"x":0,"01":1,"-1":2,"1.0":3,"":4}"#, r#"{"x":0,"01":1,"-1":2,"1.0":3,"":4}"#),
        (r#"{"x":0,"\u0031":1}"#, r#"{"1":1,"x":0}"#),
        (r#"{"__proto__":1,"constructor":2,"0":3}"#, r#"{"0":3,"__proto__":1,"constructor":2}"#),
        (r#"{"x":0,"1":[{"y":0,"1":1}]}"#, r#"{"1":[{"1":1,"y":0}],"x":0}"#),
    ] {
        assert_eq!(printed(text), expected, "{text}");
    }
}

#[test]
fn altered_value_does_not_disturb_its_neighbours() {
    assert_eq!(
        printed(r#"{"a":[1,2],"b":[1.0,"\/",{"z":1,"0":2}],"c":{"d":"e"},"f":[ ],"g":[3]}"#),
        r#"{"a":[1,2],"b":[1,"/",{"0":2,"z":1}],"c":{"d":"e"},"f":[],"g":[3]}"#
    );
}

#[test]
fn named_members_are_printed_last_as_strings_in_the_order_given() {
    let ids = [("user_id", "usr_1"), ("account_id", "acct_1")];
    for (text, expected) in [
        ("{}", r#"{"user_id":"usr_1","account_id":"acct_1"}"#),
        (r#"{"a":1}"#, r#"{"a":1,"user_id":"usr_1","account_id":"acct_1"}"#),
        (r#"{"account_id":"x","user_id":"y","a":1}"#, r#"{"a":1,"user_id":"usr_1","account_id":"acct_1"}"#),
        (r#"{"user_id":{"deep":[1]},"a":1.0}"#, r#"{"a":1,"user_id":"usr_1","account_id":"acct_1"}"#),
        (r#"{"\u0075ser_id":1,"z":2,"1":3}"#, r#"{"1":3,"z":2,"user_id":"usr_1","account_id":"acct_1"}"#),
        (r#"{"a":{"user_id":1}}"#, r#"{"a":{"user_id":1},"user_id":"usr_1","account_id":"acct_1"}"#),
        (r#"{"user_idx":1}"#, r#"{"user_idx":1,"user_id":"usr_1","account_id":"acct_1"}"#),
    ] {
        assert_eq!(printed_with_last(text, &ids), expected, "{text}");
    }
    assert_eq!(printed_with_last(r#"{"a":1}"#, &[("q\"", "\n\u{1f}é")]), r#"{"a":1,"q\"":"\n\u001fé"}"#);
    assert_eq!(printed_with_last(r#"{ "a":1 }"#, &[]), r#"{"a":1}"#);
    assert_eq!(printed_with_last("[1, 2]", &ids), "[1,2]");
}

#[test]
fn member_is_found_by_its_unescaped_key_at_the_top_level_only() {
    let text = r#"{"a":{"inner":"x"},"\u0062\n":"y","\ud83d":"z","c":null,"d":[1,[2],{"inner":3}],"e":"\/"}"#;
    let document = document(text);
    assert!(document.is_object());
    assert_eq!(document.member("b\n").and_then(|value| value.as_str()), Some(Cow::Borrowed("y")));
    assert!(document.member("inner").is_none());
    assert!(document.member("b").is_none());
    assert!(document.member("\u{fffd}").is_none());
    let inner = document.member("a").and_then(|value| value.member("inner"));
    assert_eq!(inner.and_then(|value| value.as_str()), Some(Cow::Borrowed("x")));
    assert!(document.member("c").is_some_and(|value| value.is_null()));
    assert!(!document.member("a").is_some_and(|value| value.is_null()));
    assert_eq!(document.member("e").and_then(|value| value.as_str()), Some(Cow::Owned("/".to_owned())));
    assert!(document.member("d").is_some_and(|value| value.member("inner").is_none()));
}

#[test]
fn items_are_those_of_an_array_and_not_of_another_value() {
    let document = document(r#"{"a":["x",["y"],{"z":1}],"b":[],"c":{"k":1},"d":"s"}"#);
    let items = |key| document.member(key).and_then(|value| Some(value.items()?.collect::<Vec<_>>()));
    let print = |element: &Element<'_>| {
        let mut out = Vec::new();
        element.print(&mut out);
        String::from_utf8(out).unwrap()
    };
    let printed: Option<Vec<_>> = items("a").map(|items| items.iter().map(print).collect());
    assert_eq!(printed, Some(vec![r#""x""#.to_owned(), r#"["y"]"#.to_owned(), r#"{"z":1}"#.to_owned()]));
    assert_eq!(items("b").map(|items| items.len()), Some(0));
    assert!(items("c").is_none());
    assert!(items("d").is_none());
}

#[test]
fn text_of_a_string_is_borrowed_where_nothing_is_escaped() {
    let document = document(r#"["plain é","esc\u0061ped","\ud83d","\ud83d\ude00",1,"\"\\\/\b\f\n\r\t"]"#);
    let texts: Vec<_> = document.root().items().unwrap().map(|item| item.as_str()).collect();
    assert!(matches!(texts[0], Some(Cow::Borrowed("plain é"))));
    assert_eq!(texts[1], Some(Cow::Borrowed("escaped")));
    assert_eq!(texts[2], None, "a lone surrogate is no text");
    assert_eq!(texts[3], Some(Cow::Borrowed("😀")));
    assert_eq!(texts[4], None, "a number is no text");
    assert_eq!(texts[5], Some(Cow::Borrowed("\"\\/\u{8}\u{c}\n\r\t")));
}

#[test]
fn lossy_number_is_seen_in_what_contains_it_and_not_beside_it() {
    let lossy = document(r#"{"a":[1,{"b":[9007199254740993]}],"c":[9007199254740992],"d":"9007199254740993"}"#);
    assert!(lossy.has_lossy_number());
    assert!(lossy.member("a").is_some_and(|value| value.has_lossy_number()));
    assert!(!lossy.member("c").is_some_and(|value| value.has_lossy_number()));
    assert!(!lossy.member("d").is_some_and(|value| value.has_lossy_number()));
    assert!(!document(r#"{"a":[0.1,1e23,-0,9007199254740992],"9007199254740993":"1e400"}"#).has_lossy_number());
    assert!(document("1e400").has_lossy_number());
}

#[test]
fn text_is_in_neither_the_debug_output_nor_the_error() {
    let document = document(r#"{"secret":1}"#);
    let element = document.member("secret").unwrap();
    assert_eq!(format!("{document:?} {element:?}"), "Document { bytes: 12, .. } Element { bytes: 1, .. }");
    assert_eq!(refusal(r#"{"secret"}"#).to_string(), "found no valid JSON at byte 9");
}

#[test]
fn hostile_texts_cost_no_more_than_their_length() {
    let keys = |name: &dyn Fn(u32) -> String| {
        let members: Vec<_> = (0..100_000).map(|number| format!("\"{}\":0", name(number))).collect();
        format!("{{{}}}", members.join(","))
    };
    let texts = [
        keys(&|number| format!("k{number}")),
        keys(&|number| format!("\\u006b{number}")),
        keys(&|number| (100_000 - number).to_string()),
        format!("[{}]", [keys(&|number| number.to_string()).as_str(), "{\"b\":1,\"a\":2}"].join(",")),
        format!("1e{}", "9".repeat(1_000_000)),
        format!("[{}]", vec!["1e-99999999999999999999"; 50_000].join(",")),
        format!("\"{}\"", "\\ud83d".repeat(200_000)),
        format!("[{}0]", "0, ".repeat(300_000)),
    ];
    let start = std::time::Instant::now();
    for text in &texts {
        let mut out = Vec::new();
        document(text).print(&mut out);
        assert!(out.len() <= text.len());
    }
    // A quadratic walk over any of them takes minutes.
    assert!(start.elapsed() < std::time::Duration::from_secs(20));
}

proptest! {
    #[test]
    fn print_is_read_as_the_same_value(text in json()) {
        // A key may come twice by chance.
        if let Ok(document) = parse(&text) {
            let mut once = Vec::new();
            document.print(&mut once);
            let again = Document::parse(&once).unwrap();
            let mut twice = Vec::new();
            again.print(&mut twice);
            prop_assert_eq!(&once, &twice);
            prop_assert!(!again.has_lossy_number());
            // What another parser reads is the same, too, where it knows such values at all.
            if let (Ok(before), Ok(after)) =
                (serde_json::from_str::<serde_json::Value>(&text), serde_json::from_slice::<serde_json::Value>(&once))
            {
                prop_assert!(are_alike(&before, &after), "{before} and {after}");
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_printed(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Document::parse(&bytes).map(|document| document.print(&mut Vec::new()));
    }

    #[test]
    fn any_characters_of_the_grammar_are_refused_or_read_back(text in r#"[\[\]{}:,"\\u0-9a-f.eE+\- tn]{0,24}"#) {
        if let Ok(document) = parse(&text) {
            let mut out = Vec::new();
            document.print(&mut out);
            prop_assert!(Document::parse(&out).is_ok());
        } else {
            let is_ours = matches!(refusal(&text), Error::DuplicateKey);
            prop_assert!(is_ours || serde_json::from_str::<serde_json::Value>(&text).is_err());
        }
    }
}

/// A JSON text with all the liberties the grammar gives.
fn json() -> impl Strategy<Value = String> {
    let space = || prop::sample::select(vec!["", "", "", " ", "\n\t", "\r "]);
    let number = r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?";
    let string =
        || r#""([a-z0-9 éß€😀]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9]{2}\\u[dD][c-fC-F][0-9]{2}){0,6}""#;
    let key = prop_oneof![r#""[0-9]{1,10}""#.boxed(), string().boxed()];
    let leaf =
        prop_oneof![prop::sample::select(vec!["null", "true", "false"]).prop_map(str::to_owned), number, string(),];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let items = prop::collection::vec((space(), inner.clone(), space()), 0..6).prop_map(|items| {
            items.into_iter().map(|(before, item, after)| format!("{before}{item}{after}")).collect()
        });
        let members = prop::collection::vec((space(), key.clone(), space(), inner), 0..6).prop_map(|members| {
            members.into_iter().map(|(a, key, b, value)| format!("{a}{key}{b}:{b}{value}{a}")).collect()
        });
        prop_oneof![
            items.prop_map(|items: Vec<String>| format!("[{}]", items.join(","))),
            members.prop_map(|members: Vec<String>| format!("{{{}}}", members.join(","))),
        ]
    })
}

/// Whether two values are the same but for the last bits of their numbers, in which the other parser is not exact, and
/// the sign of zero.
fn are_alike(one: &serde_json::Value, other: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            let (Some(one), Some(other)) = (one.as_f64(), other.as_f64()) else { return false };
            (one - other).abs() <= 8.0 * f64::EPSILON * one.abs()
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| are_alike(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let same = |(key, value): (&String, &Value)| other.get(key).is_some_and(|other| are_alike(value, other));
            one.len() == other.len() && one.iter().all(same)
        }
        (one, other) => one == other,
    }
}
