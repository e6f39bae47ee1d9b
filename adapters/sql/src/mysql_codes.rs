//! What the numbers of errors of MySQL and MariaDB mean.
//!
//! | number | kind |
//! |---|---|
//! | 1213, 1205, 1020, 3101, 3572, 1614; a savepoint's 1305 after one of these | `Unavailable`, with the context `contention` |
//! | 1047, 1053, 1077, 1079, 1129, 1152 to 1161, 1184, 1290, 1836, 1927, 3032, 3100, 3169, 4031 | `Unavailable` |
//! | 1021, 1037, 1038, 1040, 1041, 1114, 1203, 1206, 1226 | `Throttled` |
//! | 1317, 1969, 3024 | `Timeout` |
//! | 1046, 1049, 1051, 1054, 1146, 1176, 1243, 1305, 1665 | `ConfigInvalid` |
//! | 1045, 1130, 1251, 1524, 1698, 1862, 3118, 4151 | `Unauthenticated` |
//! | 1044, 1142, 1143, 1227, 1370 | `PermissionDenied` |
//! | 1022, 1062, 1169, 1586 | `Conflict` |
//! | 1153, 1301 | `PayloadTooLarge` |
//! | 1048, 1118, 1216, 1217, 1263 to 1265, 1292, 1364, 1366, 1406, 1451, 1452, 3819, 4025 | `InvalidArgument` |

use polybus_core::ErrorKind;

/// A deadlock: the whole transaction was rolled back.
pub(crate) const DEADLOCK: u16 = 1213;
/// A lock was waited for too long: the statement alone was rolled back.
pub(crate) const LOCK_WAIT: u16 = 1205;
/// A commit that lost against another server's, in group replication: all of it was rolled back.
const REFUSED_BY_THE_GROUP: u16 = 3101;
/// The same row is there.
pub(crate) const DUPLICATE: u16 = 1062;
/// A savepoint, or a function, that is not there.
const NO_SUCH_SAVEPOINT: u16 = 1305;

/// The number of an error of MySQL or MariaDB.
pub(crate) fn number(error: &sqlx::Error) -> Option<u16> {
    #[cfg(feature = "mysql")]
    return Some(error.as_database_error()?.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()?.number());
    #[cfg(not(feature = "mysql"))]
    {
        let _ = error;
        None
    }
}

pub(crate) fn kind(number: u16, text: &str) -> ErrorKind {
    match number {
        DEADLOCK | LOCK_WAIT | 1020 | REFUSED_BY_THE_GROUP | 3572 | 1614 => ErrorKind::Unavailable,
        NO_SUCH_SAVEPOINT if is_savepoint(text) => ErrorKind::Unavailable,
        1047
        | 1053
        | 1077
        | 1079
        | 1129
        | 1152
        | 1154..=1161
        | 1184
        | 1290
        | 1836
        | 1927
        | 3032
        | 3100
        | 3169
        | 4031 => ErrorKind::Unavailable,
        1021 | 1037 | 1038 | 1040 | 1041 | 1114 | 1203 | 1206 | 1226 => ErrorKind::Throttled,
        1317 | 1969 | 3024 => ErrorKind::Timeout,
        1046 | 1049 | 1051 | 1054 | 1146 | 1176 | 1243 | 1665 | NO_SUCH_SAVEPOINT => ErrorKind::ConfigInvalid,
        1045 | 1130 | 1251 | 1524 | 1698 | 1862 | 3118 | 4151 => ErrorKind::Unauthenticated,
        1044 | 1142 | 1143 | 1227 | 1370 => ErrorKind::PermissionDenied,
        1022 | DUPLICATE | 1169 | 1586 => ErrorKind::Conflict,
        1153 | 1301 => ErrorKind::PayloadTooLarge,
        1048 | 1118 | 1216 | 1217 | 1263..=1265 | 1292 | 1364 | 1366 | 1406 | 1451 | 1452 | 3819 | 4025 => {
            ErrorKind::InvalidArgument
        }
        _ => ErrorKind::Unexpected,
    }
}

/// What to do, where that is not what the number's kind says.
pub(crate) fn advice(number: u16) -> Option<String> {
    Some(match number {
        1049 => "the database does not exist: make it, or name another one in the URL".to_owned(),
        1046 => "no database is chosen: name it in the URL, or with .database(…)".to_owned(),
        1243 => "a proxy mixes up prepared statements; give the pool statement_cache_capacity(0), or connect directly"
            .to_owned(),
        1021 | 1114 => "the database has no room: make room on its disk, or raise the limit of the table".to_owned(),
        1153 | 1301 => "larger than max_allowed_packet of the server: raise that, or send less".to_owned(),
        1665 => {
            "this server's binlog_format is STATEMENT, which takes no write at READ COMMITTED: set it to ROW".to_owned()
        }
        1290 | 1836 => "the server is read-only: it is a replica, or was made so".to_owned(),
        _ => return None,
    })
}

/// Whether a transaction lost against another one.
pub(crate) fn is_contention(number: u16, error: &sqlx::Error) -> bool {
    match number {
        DEADLOCK | LOCK_WAIT | 1020 | REFUSED_BY_THE_GROUP | 3572 | 1614 => true,
        NO_SUCH_SAVEPOINT => is_lost_savepoint(error),
        _ => false,
    }
}

/// A savepoint is gone with its transaction.
pub(crate) fn is_lost_savepoint(error: &sqlx::Error) -> bool {
    number(error) == Some(NO_SUCH_SAVEPOINT)
        && error.as_database_error().is_some_and(|error| is_savepoint(error.message()))
}

fn is_savepoint(text: &str) -> bool {
    text.starts_with("SAVEPOINT")
}

pub(crate) fn may_be_away(number: u16) -> bool {
    // Too many connections are those of the whole server.
    matches!(kind(number, ""), ErrorKind::Unavailable if !matches!(number, DEADLOCK | LOCK_WAIT | 1020 | REFUSED_BY_THE_GROUP | 3572 | 1614))
        || matches!(number, 1040 | 1041 | 1203)
}

/// Whether the disk is full, or the space of a table.
pub(crate) fn is_full(number: u16) -> bool {
    matches!(number, 1021 | 1114)
}

/// Whether a statement that commits by itself, or a COMMIT, may have happened though it was answered with this. One
/// that was killed, or took too long, may have been waiting for a replica when all was written.
pub(crate) fn may_have_happened(number: u16) -> bool {
    matches!(number, 1180 | 1317 | 1969 | 3024 | 1053 | 1077 | 1079 | 1152 | 1154..=1161 | 1184 | 1927 | 3169)
}

/// Whether the connection leads to where nothing can be written, though it works.
pub(crate) fn is_misled(number: u16) -> bool {
    matches!(number, 1047 | 1053 | 1079 | 1290 | 1836 | 1927 | 3169)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_kind() {
        for (number, expected) in [
            (1213, ErrorKind::Unavailable),
            (1205, ErrorKind::Unavailable),
            (1290, ErrorKind::Unavailable),
            (1927, ErrorKind::Unavailable),
            (1040, ErrorKind::Throttled),
            (1114, ErrorKind::Throttled),
            (3101, ErrorKind::Unavailable),
            (4031, ErrorKind::Unavailable),
            (1665, ErrorKind::ConfigInvalid),
            (1969, ErrorKind::Timeout),
            (3024, ErrorKind::Timeout),
            (1146, ErrorKind::ConfigInvalid),
            (1045, ErrorKind::Unauthenticated),
            (1044, ErrorKind::PermissionDenied),
            (1062, ErrorKind::Conflict),
            (1153, ErrorKind::PayloadTooLarge),
            (1406, ErrorKind::InvalidArgument),
            (1064, ErrorKind::Unexpected),
        ] {
            assert_eq!(kind(number, "text"), expected, "{number}");
        }
        assert_eq!(kind(1305, "SAVEPOINT x does not exist"), ErrorKind::Unavailable);
        assert_eq!(kind(1305, "FUNCTION x does not exist"), ErrorKind::ConfigInvalid);
        assert!(is_full(1021) && is_full(1114) && !is_full(1040) && !may_be_away(1114));
        assert!(may_be_away(1053) && may_be_away(1040) && !may_be_away(1213) && !may_be_away(1062));
    }
}
