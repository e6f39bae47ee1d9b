//! Runs the conformance suite against the broker of a URL.

fn main() -> std::process::ExitCode {
    polybus_conformance::cli(polybus::registry())
}
