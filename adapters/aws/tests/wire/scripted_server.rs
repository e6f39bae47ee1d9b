//! A server whose answers a test scripts, for what an emulator never does and a network seldom does.

use std::{
    process::Command,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

/// How one request is answered.
pub(crate) enum ScriptedAnswer {
    Ok(Value),
    /// The same, once this is notified.
    After(Arc<Notify>, Value),
    /// HTTP status, code, message.
    Error(u16, &'static str, &'static str),
    /// The connection ends without an answer, once the request has arrived.
    Lost,
}

type AnswerScript = dyn Fn(&str, usize, &Value) -> ScriptedAnswer + Send + Sync;
type RequestLog = Arc<Mutex<Vec<(String, Value)>>>;

/// A server that speaks SQS' protocol. It ends when it is dropped.
pub(crate) struct ScriptedServer {
    pub(crate) url: String,
    asked: RequestLog,
    accepting: JoinHandle<()>,
}

impl ScriptedServer {
    /// Starts a server. The script gets the operation, how often it was called before, and its input. `ListQueues` and
    /// `GetQueueUrl` are answered without it.
    pub(crate) async fn new(answer: impl Fn(&str, usize, &Value) -> ScriptedAnswer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("aws://?region=eu-west-1&account=123456789012&endpoint=http://{address}");
        let (asked, answer): (RequestLog, Arc<AnswerScript>) = (Arc::default(), Arc::new(answer));
        let kept = asked.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, kept.clone(), answer.clone()));
            }
        });
        Self { url, asked, accepting }
    }

    /// The inputs of all requests of one operation so far.
    pub(crate) fn requests(&self, operation: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(name, _)| name == operation).map(|(_, input)| input.clone()).collect()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(client: TcpStream, asked: RequestLog, answer: Arc<AnswerScript>) {
    let (from, mut to) = client.into_split();
    let mut from = BufReader::new(from);
    while let Some((operation, input)) = request(&mut from).await {
        let before = {
            let mut asked = asked.lock().unwrap();
            asked.push((operation.clone(), input.clone()));
            asked.iter().filter(|(name, _)| *name == operation).count() - 1
        };
        let answer = match &*operation {
            "ListQueues" => ScriptedAnswer::Ok(json!({})),
            "GetQueueUrl" => {
                let name = input["QueueName"].as_str().unwrap();
                ScriptedAnswer::Ok(json!({ "QueueUrl": format!("http://queue/123456789012/{name}") }))
            }
            _ => answer(&operation, before, &input),
        };
        let (status, body) = match answer {
            ScriptedAnswer::Lost => return,
            ScriptedAnswer::Ok(output) => (200, output),
            ScriptedAnswer::After(when, output) => {
                when.notified().await;
                (200, output)
            }
            ScriptedAnswer::Error(status, code, message) => {
                (status, json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": message }))
            }
        };
        let body = body.to_string();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0");
        let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if to.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn request(from: &mut (impl AsyncBufReadExt + Unpin)) -> Option<(String, Value)> {
    let (mut operation, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let Some((name, value)) = line.split_once(':') else {
            if line.trim().is_empty() {
                break;
            }
            continue;
        };
        match &*name.to_ascii_lowercase() {
            "x-amz-target" => operation = value.trim().rsplit('.').next().unwrap().to_owned(),
            "content-length" => length = value.trim().parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await.ok()?;
    Some((operation, serde_json::from_slice(&body).unwrap_or_default()))
}

/// A message as `ReceiveMessage` answers it.
pub(crate) fn message(id: &str) -> Value {
    json!({ "MessageId": id, "ReceiptHandle": format!("receipt-{id}"), "Body": format!("body-{id}"),
            "Attributes": { "ApproximateReceiveCount": "1", "MessageGroupId": "g" } })
}

/// Answers that every entry of a batch was done.
pub(crate) fn all_well(input: &Value) -> ScriptedAnswer {
    let done = input["Entries"].as_array().unwrap().iter().map(|e| json!({ "Id": e["Id"] }));
    ScriptedAnswer::Ok(json!({ "Successful": done.collect::<Vec<_>>(), "Failed": [] }))
}

/// Whether this process has credentials. If not, it runs the test in a child process that has, since credentials belong
/// to the process; the caller returns then.
pub(crate) fn has_credentials(test: &str) -> bool {
    if std::env::var_os("AWS_ACCESS_KEY_ID").is_some() {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([test, "--exact", "--nocapture"]);
    child.env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE").env("AWS_SECRET_ACCESS_KEY", "none");
    assert!(child.status().unwrap().success());
    false
}
