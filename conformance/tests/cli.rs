//! The binary: exit codes, closing line, reports, and errors that say what to do and show no password.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polybus-conformance"));
    command.args(args).env_remove("POLYBUS_URL").env_remove("RUST_LOG").output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn runs_and_reports() {
    let dir = std::env::temp_dir().join(format!("polybus-conformance-cli-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (md, xml) = (dir.join("r.md"), dir.join("r.xml"));
    let (md_arg, xml_arg) = (md.to_str().unwrap(), xml.to_str().unwrap());
    let args = ["--url", "memory://", "--paused", "--filter", "publish/single", "--report", md_arg, "--junit", xml_arg];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        String::from_utf8_lossy(&output.stdout).ends_with("\n1 passed, 0 failed, 0 skipped\n"),
        "{}",
        text(&output)
    );
    assert!(std::fs::read_to_string(&md).unwrap().contains("| publish/single | passed |"));
    assert!(std::fs::read_to_string(&xml).unwrap().contains("name=\"single\""));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn lists_without_running() {
    let output = run(&["--url", "memory://", "--list"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("publish/single: One published message"), "{}", text(&output));
    assert!(!text(&output).contains("passed,"));
}

#[test]
fn wrong_use_says_what_is_right() {
    for (args, code, word) in [
        (&[][..], 2, "--url"),
        (&["--url", "nonsense"], 2, "malformed bus URL"),
        (&["--url", "gopher://u:s3cret@h"], 2, "unknown scheme gopher://"),
        (&["--url", "memory://u:s3cret@h"], 2, "no user"),
        (&["--url", "memory://", "--filter", "no-such-scenario"], 2, "no scenario's name contains"),
        (&["--url", "memory://", "--report", "/no/such/folder/r.md"], 2, "/no/such/folder/r.md"),
        (&["--url", "memory://", "--kill", "true"], 2, "--start"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(word), "{args:?}: {}", text(&output));
        assert!(!text(&output).contains("s3cret"), "{args:?}: {}", text(&output));
    }
}
