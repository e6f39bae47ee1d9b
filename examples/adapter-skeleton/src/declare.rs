//! A queue is a stream with a consumer group, and a second such stream for its dead letters.

use polybus_core::{
    Error, ErrorKind, Result, Source,
    topology::{DeclareMode, DeclareReport, Entity, EntityDifference},
};
use redis::{Pipeline, Value};

use crate::{connection::SharedConnection, scripts::GROUP};

/// A logical name has no dot, so that no queue's is another's dead letters.
pub(crate) fn dead_letters(physical: &str) -> String {
    format!("{physical}.dlq")
}

/// Creates one source, or only looks. Asked twice it is declared once: what has no answer is safe to ask again.
pub(crate) async fn source(
    connection: &SharedConnection,
    source: &Entity<Source>,
    mode: DeclareMode,
    report: &mut DeclareReport,
) -> Result<()> {
    let mut commands = Pipeline::new();
    for key in [&*source.physical, &dead_letters(&source.physical)] {
        match mode {
            DeclareMode::Create => commands.cmd("XGROUP").arg("CREATE").arg(key).arg(GROUP).arg(0).arg("MKSTREAM"),
            _ => commands.cmd("XINFO").arg("CONSUMERS").arg(key).arg(GROUP),
        };
    }
    let mut missing = false;
    for answer in connection.round_trip::<Value>(commands, "declare").await.map_err(Error::safe)? {
        match answer {
            Ok(_) => missing |= mode == DeclareMode::Create,
            Err(e) if e.message().contains("BUSYGROUP") => {}
            Err(e) if e.kind() == ErrorKind::NotFound => missing = true,
            Err(e) => return Err(e),
        }
    }
    match (missing, mode) {
        (false, _) => {}
        (true, DeclareMode::Create) => report.created.push(source.name.to_string()),
        (true, _) => report.differences.push(EntityDifference::new(&source.name, "exists", true, false)),
    }
    Ok(())
}

/// `NotFound` where the stream is not there.
pub(crate) async fn check(connection: &SharedConnection, key: &str) -> Result<()> {
    let mut commands = Pipeline::new();
    commands.cmd("XINFO").arg("CONSUMERS").arg(key).arg(GROUP);
    let answers = connection.round_trip::<Value>(commands, "subscribe").await.map_err(Error::safe)?;
    answers.into_iter().try_for_each(|answer| answer.map(drop))
}

/// Deletes these sources; those that are not there are fine.
pub(crate) async fn delete(connection: &SharedConnection, sources: &[Entity<Source>]) -> Result<()> {
    let mut commands = Pipeline::new();
    for source in sources {
        commands.cmd("DEL").arg(&*source.physical).arg(dead_letters(&source.physical));
    }
    connection.round_trip::<u32>(commands, "delete").await?.into_iter().try_for_each(|answer| answer.map(drop))
}
