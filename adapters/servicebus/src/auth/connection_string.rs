//! Connection strings as the Azure portal shows them: `Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…`.

use polybus_core::Result;

use crate::{
    auth::credential::{Credential, Secret},
    config::config_error,
};

/// The fields of a connection string.
pub(crate) struct ConnectionString {
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    pub(crate) credential: Credential,
    pub(crate) emulator: bool,
    pub(crate) websockets: bool,
    /// The one entity that the key is for.
    pub(crate) entity: Option<String>,
}

impl ConnectionString {
    /// Reads a connection string. Errors name fields, never values.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (mut endpoint, mut name, mut key, mut token) = (None, None, None, None);
        let (mut emulator, mut websockets, mut entity) = (false, false, None);
        for field in text.split(';').map(str::trim).filter(|f| !f.is_empty()) {
            let Some((field, value)) = field.split_once('=') else {
                return Err(config_error("connection_string: expected Field=value;Field=value"));
            };
            match field.to_ascii_lowercase().as_str() {
                "endpoint" => endpoint = Some(value),
                "sharedaccesskeyname" => name = Some(value),
                "sharedaccesskey" => key = Some(value),
                "sharedaccesssignature" => token = Some(value),
                "usedevelopmentemulator" => emulator = value.eq_ignore_ascii_case("true"),
                "transporttype" => websockets = value.eq_ignore_ascii_case("AmqpWebSockets"),
                "entitypath" => entity = Some(value.trim_matches('/').to_owned()).filter(|e| !e.is_empty()),
                "operationtimeout" => {
                    return Err(config_error(
                        "connection_string: leave OperationTimeout away; the URL has connect_timeout=10s",
                    ));
                }
                "runtimeport" | "managementport" => {
                    let text =
                        "connection_string: write the ports as Endpoint=sb://host:port and management=http://host:port";
                    return Err(config_error(text));
                }
                "authentication" | "stsendpoint" | "identity" | "oauthusername" | "oauthpassword" => {
                    let text = "connection_string: credentials of Entra ID come with ServicebusConnector::with_credential (feature \
                                servicebus-identity)";
                    return Err(config_error(text));
                }
                "accountendpoint" | "accountkey" | "accountname" | "defaultendpointsprotocol" | "blobendpoint" => {
                    let text = "connection_string: this one is of another service of Azure; expected Endpoint=sb://…";
                    return Err(config_error(text));
                }
                _ => {
                    let text = "connection_string: a field that is none of Service Bus'; they are Endpoint, SharedAccessKeyName, \
                                SharedAccessKey, SharedAccessSignature, EntityPath, UseDevelopmentEmulator, TransportType";
                    return Err(config_error(text));
                }
            }
        }
        let wrong = || config_error("connection_string: expected Endpoint=sb://namespace.servicebus.windows.net/");
        let (_, rest) = endpoint.and_then(|e| e.split_once("://")).ok_or_else(wrong)?;
        let authority = rest.split('/').next().unwrap_or("");
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong())?)),
            None => (authority, None),
        };
        if host.is_empty() {
            return Err(wrong());
        }
        let credential = match (name, key, token) {
            (Some(name), Some(key), None) => Credential::Key { name: name.to_owned(), key: Secret::new(key) },
            (None, None, Some(token)) => Credential::Token(Secret::new(token)),
            (None, None, None) => Credential::None,
            _ => {
                let text =
                    "connection_string: expected SharedAccessKeyName and SharedAccessKey, or SharedAccessSignature";
                return Err(config_error(text));
            }
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port, credential, emulator, websockets, entity })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fields_in_any_case_and_order() {
        let s = "sharedaccesskey=a=b==;Endpoint=sb://127.0.0.1:5673;SharedAccessKeyName=r;UseDevelopmentEmulator=True;EntityPath=q;";
        let s = ConnectionString::parse(s).unwrap();
        assert_eq!((&*s.host, s.port, s.emulator), ("127.0.0.1", Some(5673), true));
        assert_eq!(s.entity.as_deref(), Some("q"));
        assert!(matches!(&s.credential, Credential::Key { name, key } if name == "r" && key.reveal() == "a=b=="));
    }

    #[test]
    fn what_is_wrong_is_refused_without_showing_it() {
        for bad in [
            "s3cret",
            "Endpoint=s3cret",
            "Endpoint=sb://",
            "Endpoint=sb://h:s3cret",
            "Endpoint=sb://h;SharedAccessKey=s3cret",
            "Endpoint=sb://h;SharedAccessKeyName=s3cret",
            "Endpoint=sb://h;SharedAccessKeyName=a;SharedAccessKey=s3cret;SharedAccessSignature=s3cret",
            "Endpoint=sb://h;Password=s3cret",
        ] {
            let e = ConnectionString::parse(bad).map(|_| ()).unwrap_err();
            assert!(!format!("{e:?}").contains("s3cret"), "{bad}: {e}");
        }
    }
}
