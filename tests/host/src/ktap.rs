//! The Kernel Test Anything Protocol, as strictly as the kernel claims to print it.
//!
//! Linux's parsers are lenient because many programs print KTAP; here one does, and whatever it gets
//! wrong is a defect of its harness. Lines that are not KTAP may stand between those that are: they are
//! the kernel's log.

use std::error::Error;
use std::fmt;

/// What a run of the suite reported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The tests in the order in which they ran.
    pub tests: Vec<Test>,
    /// How many passed, according to the summary line and to the tests; the skipped are not among them.
    pub passed: usize,
    /// How many failed, according to the summary line and to the tests.
    pub failed: usize,
}

/// One test's result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Test {
    /// Its name, such as `mm.alloc_free`.
    pub name: String,
    /// What became of it.
    pub result: TestResult,
}

/// What became of a test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TestResult {
    /// `ok`.
    Passed,
    /// `not ok`.
    Failed,
    /// `ok … # SKIP reason`: neither passed nor failed.
    Skipped(String),
}

/// In what the output is not a report that can be believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KtapError {
    /// There is no line `KTAP version 1`.
    NoVersion,
    /// There is another version line than the one.
    Version(String),
    /// A plan or a result stands before the version line.
    BeforeVersion(String),
    /// There is no line `1..N`.
    NoPlan,
    /// There is a second plan, or one that can't be read.
    Plan(String),
    /// A result stands before the plan.
    BeforePlan(String),
    /// A result line can't be read.
    Malformed(String),
    /// A result does not have the next number.
    Number {
        /// The line.
        line: String,
        /// The number it should have.
        expected: usize,
    },
    /// Two results have this name.
    Repeated(String),
    /// A result is not of the test of the last line `# running NAME`.
    NotRunning {
        /// The line.
        line: String,
        /// The name in the last such line that no result followed.
        running: Option<String>,
    },
    /// The number of results is not the plan's.
    PlanNotMet {
        /// Announced.
        plan: usize,
        /// Reported.
        results: usize,
    },
    /// There is no line `N passed, N failed`.
    NoSummary,
    /// KTAP goes on after the summary line.
    AfterSummary(String),
    /// The summary line says something other than the results.
    SummaryDisagrees {
        /// `N passed, N failed`, as printed.
        summary: String,
        /// The results that say `ok`, without the skipped.
        passed: usize,
        /// The results that say `not ok`.
        failed: usize,
    },
}

impl fmt::Display for KtapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVersion => f.write_str("no line `KTAP version 1`"),
            Self::Version(line) => write!(f, "unexpected version line `{line}`"),
            Self::BeforeVersion(line) => write!(f, "`{line}` stands before the version line"),
            Self::NoPlan => f.write_str("no plan"),
            Self::Plan(line) => write!(f, "unexpected plan `{line}`"),
            Self::BeforePlan(line) => write!(f, "`{line}` stands before the plan"),
            Self::Malformed(line) => write!(f, "`{line}` is no result line"),
            Self::Number { line, expected } => write!(f, "`{line}` should have the number {expected}"),
            Self::Repeated(name) => write!(f, "two results for {name}"),
            Self::NotRunning { line, running: Some(name) } => {
                write!(f, "`{line}` is not of the test that was running, {name}")
            }
            Self::NotRunning { line, running: None } => write!(f, "`{line}` without `# running` before it"),
            Self::PlanNotMet { plan, results } => write!(f, "{plan} tests announced, {results} reported"),
            Self::NoSummary => f.write_str("no summary line"),
            Self::AfterSummary(line) => write!(f, "`{line}` stands after the summary line"),
            Self::SummaryDisagrees { summary, passed, failed } => {
                write!(f, "the summary says {summary}, the results {passed} passed, {failed} failed")
            }
        }
    }
}

impl Error for KtapError {}

impl Report {
    /// Reads the console's output.
    ///
    /// # Errors
    /// Where the output is not KTAP from a version line to the summary line, or contradicts itself.
    pub fn parse(console: &str) -> Result<Self, KtapError> {
        let mut parser = Parser::default();
        for line in console.lines() {
            parser.line(line.trim_end_matches('\r'))?;
        }
        parser.finish()
    }

    /// The names in the order in which the tests ran.
    pub fn names(&self) -> Vec<&str> {
        self.tests.iter().map(|test| test.name.as_str()).collect()
    }

    /// The tests that were skipped, with their reasons.
    pub fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tests.iter().filter_map(|test| match &test.result {
            TestResult::Skipped(reason) => Some((test.name.as_str(), reason.as_str())),
            TestResult::Passed | TestResult::Failed => None,
        })
    }
}

#[derive(Default)]
struct Parser {
    version: bool,
    plan: Option<usize>,
    running: Option<String>,
    tests: Vec<Test>,
    summary: Option<(String, usize, usize)>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<(), KtapError> {
        let summary = parse_summary(line);
        let is_version = line.starts_with("KTAP version");
        let is_plan = line.starts_with("1..");
        let is_result = ["ok", "not ok"].iter().any(|word| {
            line.strip_prefix(word)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        });
        let running = line.strip_prefix("# running ");
        if !(is_version || is_plan || is_result || summary.is_some() || running.is_some()) {
            return Ok(());
        }

        let own = || line.to_owned();
        if self.summary.is_some() {
            return Err(KtapError::AfterSummary(own()));
        }
        if is_version {
            if self.version || line != "KTAP version 1" {
                return Err(KtapError::Version(own()));
            }
            self.version = true;
            return Ok(());
        }
        if !self.version {
            return Err(KtapError::BeforeVersion(own()));
        }
        if is_plan {
            let plan = line["1..".len()..].parse().map_err(|_| KtapError::Plan(own()))?;
            return match self.plan.replace(plan) {
                None => Ok(()),
                Some(_) => Err(KtapError::Plan(own())),
            };
        }
        if self.plan.is_none() {
            return Err(KtapError::BeforePlan(own()));
        }
        if let Some((passed, failed)) = summary {
            self.summary = Some((own(), passed, failed));
            return Ok(());
        }
        if let Some(name) = running {
            // A test that never got a result is noticed by the next result's number, or by the plan.
            self.running = Some(name.to_owned());
            return Ok(());
        }
        self.result(line)
    }

    fn result(&mut self, line: &str) -> Result<(), KtapError> {
        let malformed = || KtapError::Malformed(line.to_owned());
        let (failed, rest) = match line.strip_prefix("not ") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let rest = rest.strip_prefix("ok ").ok_or_else(malformed)?;
        let (number, rest) = rest.split_once(' ').ok_or_else(malformed)?;
        let (name, directive) = match rest.split_once(" # ") {
            Some((name, directive)) => (name, Some(directive)),
            None => (rest, None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(malformed());
        }
        let expected = self.tests.len() + 1;
        if number != expected.to_string() {
            return Err(KtapError::Number { line: line.to_owned(), expected });
        }
        if self.tests.iter().any(|test| test.name == name) {
            return Err(KtapError::Repeated(name.to_owned()));
        }
        let running = self.running.take();
        if running.as_deref() != Some(name) {
            return Err(KtapError::NotRunning { line: line.to_owned(), running });
        }
        let result = match (failed, directive) {
            (true, _) => TestResult::Failed,
            (false, None) => TestResult::Passed,
            (false, Some(directive)) => {
                let reason = directive.strip_prefix("SKIP").ok_or_else(malformed)?;
                TestResult::Skipped(reason.trim().to_owned())
            }
        };
        self.tests.push(Test { name: name.to_owned(), result });
        Ok(())
    }

    fn finish(self) -> Result<Report, KtapError> {
        if !self.version {
            return Err(KtapError::NoVersion);
        }
        let plan = self.plan.ok_or(KtapError::NoPlan)?;
        if plan != self.tests.len() {
            return Err(KtapError::PlanNotMet { plan, results: self.tests.len() });
        }
        let (summary, said_passed, said_failed) = self.summary.ok_or(KtapError::NoSummary)?;
        let count = |result| self.tests.iter().filter(|test| test.result == result).count();
        let (passed, failed) = (count(TestResult::Passed), count(TestResult::Failed));
        if (said_passed, said_failed) != (passed, failed) {
            return Err(KtapError::SummaryDisagrees { summary, passed, failed });
        }
        Ok(Report { tests: self.tests, passed, failed })
    }
}

/// Reads `N passed, N failed`, and nothing else on the line.
fn parse_summary(line: &str) -> Option<(usize, usize)> {
    let (passed, rest) = line.split_once(" passed, ")?;
    let failed = rest.strip_suffix(" failed")?;
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
    Some((number(passed)?, number(failed)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[0.001] boot: log line\nKTAP version 1\r\n1..3\r\n# running a.one\r\nok 1 a.one\r\n\
        # running a.two\n[0.5] warn: in between\nok 2 a.two # SKIP one CPU only\n# running b.three\n\
        ok 3 b.three\n2 passed, 0 failed\n";

    fn error(output: &str) -> KtapError {
        Report::parse(output).unwrap_err()
    }

    /// The good output with one piece replaced.
    fn with(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        GOOD.replacen(from, to, 1)
    }

    #[test]
    fn reads_a_good_report() {
        let report = Report::parse(GOOD).unwrap();
        assert_eq!(report.names(), ["a.one", "a.two", "b.three"]);
        assert_eq!((report.passed, report.failed), (2, 0));
        assert_eq!(report.skipped().collect::<Vec<_>>(), [("a.two", "one CPU only")]);
    }

    #[test]
    fn reads_failures_that_the_summary_admits() {
        let output = with("ok 1 a.one", "not ok 1 a.one").replace("2 passed, 0", "1 passed, 1");
        let report = Report::parse(&output).unwrap();
        assert_eq!((report.passed, report.failed), (1, 1));
        assert_eq!(report.tests[0].result, TestResult::Failed);
    }

    #[test]
    fn an_empty_plan_is_a_report() {
        let report = Report::parse("KTAP version 1\n1..0\n0 passed, 0 failed\n").unwrap();
        assert!(report.tests.is_empty());
    }

    #[test]
    fn refuses_output_without_its_frame() {
        assert_eq!(error(""), KtapError::NoVersion);
        assert_eq!(error("hello\n"), KtapError::NoVersion);
        assert!(matches!(error(&with("KTAP version 1", "KTAP version 2")), KtapError::Version(_)));
        assert!(matches!(error(&with("KTAP version 1\r\n", "")), KtapError::BeforeVersion(_)));
        assert!(matches!(error(&with("1..3", "KTAP version 1")), KtapError::Version(_)));
        assert_eq!(error("KTAP version 1\n"), KtapError::NoPlan);
        assert!(matches!(error(&with("1..3\r\n", "")), KtapError::BeforePlan(_)));
        assert!(matches!(error(&with("1..3", "1..many")), KtapError::Plan(_)));
        assert!(matches!(error(&with("1..3", "1..3\n1..3")), KtapError::Plan(_)));
        assert_eq!(error(&with("2 passed, 0 failed\n", "")), KtapError::NoSummary);
    }

    #[test]
    fn refuses_a_summary_that_lies() {
        let lies = ["1 passed, 0 failed", "3 passed, 0 failed", "2 passed, 1 failed", "0 passed, 0 failed"];
        for lie in lies {
            let disagrees = KtapError::SummaryDisagrees { summary: lie.to_owned(), passed: 2, failed: 0 };
            assert_eq!(error(&with("2 passed, 0 failed", lie)), disagrees);
        }
        let hidden = error(&with("ok 1 a.one", "not ok 1 a.one"));
        assert!(matches!(hidden, KtapError::SummaryDisagrees { passed: 1, failed: 1, .. }));
        for none in ["2 passed", "2 passed, 0 failed.", " 2 passed, 0 failed", "+2 passed, 0 failed"] {
            assert_eq!(error(&with("2 passed, 0 failed", none)), KtapError::NoSummary, "{none}");
        }
    }

    #[test]
    fn refuses_a_plan_that_is_not_met() {
        assert_eq!(error(&with("1..3", "1..4")), KtapError::PlanNotMet { plan: 4, results: 3 });
        let short = with("# running b.three\nok 3 b.three\n", "").replace("2 passed", "1 passed");
        assert_eq!(error(&short), KtapError::PlanNotMet { plan: 3, results: 2 });
    }

    #[test]
    fn refuses_wrong_numbers_and_names() {
        assert!(matches!(error(&with("ok 2", "ok 3")), KtapError::Number { expected: 2, .. }));
        assert!(matches!(error(&with("ok 2", "ok 02")), KtapError::Number { expected: 2, .. }));
        let twice = with("b.three", "a.one").replace("b.three", "a.one");
        assert_eq!(error(&twice), KtapError::Repeated("a.one".to_owned()));
        assert!(matches!(error(&with("running a.two", "running a.tow")), KtapError::NotRunning { .. }));
        assert!(matches!(
            error(&with("# running a.one\r\n", "")),
            KtapError::NotRunning { running: None, .. }
        ));
    }

    #[test]
    fn refuses_malformed_results() {
        for line in ["ok", "ok 1", "not ok", "not ok 1", "ok 1 two words", "ok 1 a.one # maybe", "ok 1 "] {
            let output = with("ok 1 a.one", line);
            assert!(matches!(error(&output), KtapError::Malformed(_)), "{line}: {:?}", error(&output));
        }
    }

    #[test]
    fn refuses_what_follows_the_summary() {
        for line in ["2 passed, 0 failed", "ok 4 late", "1..1", "KTAP version 1", "# running late"] {
            let output = format!("{GOOD}{line}\n");
            assert_eq!(error(&output), KtapError::AfterSummary(line.to_owned()));
        }
    }
}
