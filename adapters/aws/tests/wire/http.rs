//! HTTP/1.1 as far as the SDK and LocalStack speak it: heads as they stand, bodies by their length or in chunks.

use std::{
    collections::HashMap,
    io::{Error, ErrorKind, Result},
};

use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A request or an answer.
#[derive(Clone, Debug)]
pub(crate) struct HttpMessage {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl HttpMessage {
    /// The next one, or `None` at the connection's end.
    pub(crate) async fn read(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Self>> {
        let mut head = String::new();
        loop {
            let start = head.len();
            if from.read_line(&mut head).await? == 0 {
                return if head.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
            if head[start..].trim_end().is_empty() {
                break;
            }
        }
        let mut this = Self { head, body: Vec::new() };
        if this.header("transfer-encoding").is_some() {
            this.body = chunks(from).await?;
            this.set("content-length", &this.body.len().to_string());
            this.remove("transfer-encoding");
        } else {
            let length = this.header("content-length").map_or(Ok(0), str::parse).map_err(Error::other)?;
            this.body = vec![0; length];
            from.read_exact(&mut this.body).await?;
        }
        Ok(Some(this))
    }

    pub(crate) async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        to.write_all(&[self.head.as_bytes(), &*self.body].concat()).await
    }

    /// An answer of this kind of content.
    pub(crate) fn answer(status: u16, content_type: &str, body: &str) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n");
        Self { head, body: body.into() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &'_ str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        Some(self.head.lines().find(|line| named(line))?.split_once(':')?.1.trim())
    }

    fn remove(&mut self, name: &str) {
        let kept = |line: &&str| !line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head = self.head.trim_end().lines().filter(kept).map(|line| format!("{line}\r\n")).collect();
        self.head.push_str("\r\n");
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.head.truncate(self.head.len() - 2);
        self.head.push_str(&format!("{name}: {value}\r\n\r\n"));
    }

    /// Changes the JSON that it is.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut Value)) {
        if let Ok(mut json) = serde_json::from_slice(&self.body) {
            change(&mut json);
            self.body = json.to_string().into_bytes();
            self.set("content-length", &self.body.len().to_string());
        }
    }

    /// The operation's name: SQS has it in a header, SNS and STS in the body.
    pub(crate) fn operation(&self) -> String {
        match self.header("x-amz-target") {
            Some(target) => target.rsplit('.').next().unwrap_or(target).to_owned(),
            None => self.form().remove("Action").unwrap_or_else(|| "another".to_owned()),
        }
    }

    /// Whether it speaks SQS' protocol, not that of SNS.
    pub(crate) fn is_json(&self) -> bool {
        self.header("x-amz-target").is_some()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The fields of the query protocol.
    pub(crate) fn form(&self) -> HashMap<String, String> {
        url::form_urlencoded::parse(&self.body).into_owned().collect()
    }
}

async fn chunks(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line).await?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(Error::other)?;
        let start = body.len();
        body.resize(start + size, 0);
        from.read_exact(&mut body[start..]).await?;
        from.read_line(&mut line).await?;
        if size == 0 {
            return Ok(body);
        }
    }
}
