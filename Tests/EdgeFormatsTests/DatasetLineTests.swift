import EdgeFormats
import FoundationEssentials
import Testing

@Suite struct DatasetLineTests {
    @Test func everyShapeIsRead() throws {
        func sample(_ line: String) throws -> DatasetSample { try DatasetLine.sample(Array(line.utf8)) }
        #expect(
            try sample(
                #"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "c"}], "prompt": "p", "text": "t"}"#
            )
                == .messages([
                    Message(role: "user", content: "a"),
                    Message(role: "assistant", content: "b", extra: JinjaObject([("name", .string("c"))])),
                ]))
        #expect(
            try sample(#"{"completion": "b", "prompt": "a", "id": 7}"#)
                == .promptCompletion(prompt: "a", completion: "b"))
        #expect(
            try sample(#"{"instruction": "a", "input": "", "output": "c", "text": "t"}"#)
                == .instruction(instruction: "a", input: nil, output: "c"))
        #expect(
            try sample(#"{"instruction": "a", "input": "b", "output": "c"}"#)
                == .instruction(instruction: "a", input: "b", output: "c"))
        #expect(try sample(#"{"text": "é\ud834\udd1e"}"#) == .text("é𝄞"))
    }

    @Test(arguments: [
        (#"{"text": "a", "task": "b"}"#, "b"), (#"{"task": "b", "prompt": "a", "completion": "c"}"#, "b"), (#"{"text": "a"}"#, nil),
        (#"{"text": "a", "task": 7}"#, nil), (#"{"text": "a", "task": null}"#, nil),
    ] as [(String, String?)])
    func aTaskIsAString(_ line: String, _ task: String?) throws {
        #expect(try DatasetLine.sampleAndTask(Array(line.utf8)).task == task)
    }

    @Test(arguments: [
        (
            #"{"foo": 1, "bar": 2}"#,
            "needs one of messages | prompt+completion | instruction+output | text; found keys: foo, bar"
        ),
        ("{}", "needs one of messages | prompt+completion | instruction+output | text; found keys: none"),
        ("[1]", "needs a JSON object; found: list"),
        (#"{"text": 5}"#, "text needs to be a string; found: integer"),
        (#"{"text": ""}"#, "text is empty"),
        (#"{"messages": []}"#, "messages is empty"),
        (#"{"messages": [{"role": "user"}]}"#, "messages[0].content is missing"),
        (
            #"{"messages": [{"role": "user", "content": null}]}"#,
            "messages[0].content needs to be a string; found: none"
        ),
        (#"{"text": "a", "tools": [{}]}"#, "tools is not supported"),
        (#"{"messages": [{"role": "user", "content": "a"}], "tools": "f"}"#, "tools needs to be a list; found: string"),
        (
            #"{"messages": [{"role": "user", "content": "a"}], "tools": [{}, 1]}"#,
            "tools[1] needs to be an object; found: integer"
        ),
        (
            #"{"messages": [{"role": "user", "content": ["a"]}]}"#,
            "messages[0].content[0] needs to be an object; found: string"
        ),
        (#"{"text": "a""#, "not JSON: expected \",\" or \"}\" at byte 12"),
    ])
    func aBadLineSaysWhatIsWrong(_ line: String, _ expected: String) {
        do throws(DatasetError.Reason) {
            let sample = try DatasetLine.sample(Array(line.utf8))
            Issue.record("read as \(sample)")
        } catch { #expect(error.description == expected) }
    }

    @Test func toolsAndCallsAreRead() throws {
        let line =
            #"{"messages": [{"role": "assistant", "tool_calls": [{"name": "f"}]}, {"role": "user", "content": [{"type": "text", "text": "a"}]}], "tools": [{"name": "f"}]}"#
        let tool = try JinjaValue.object([("name", .string("f"))])
        let part = try JinjaValue.object([("type", .string("text")), ("text", .string("a"))])
        #expect(
            try DatasetLine.sample(Array(line.utf8))
                == .messages(
                    [
                        Message(
                            role: "assistant", content: .undefined,
                            extra: JinjaObject([("tool_calls", .list([tool]))])),
                        Message(role: "user", content: .list([part])),
                    ], tools: .list([tool])))
    }

    @Test func invalidUTF8IsAnError() {
        #expect(throws: DatasetError.Reason.notJSON(.invalidUTF8(offset: 10))) {
            try DatasetLine.sample(Array(#"{"text": ""#.utf8) + [0xFF] + Array(#""}"#.utf8))
        }
    }

    @Test func aFileIsReadLineByLine() throws {
        let text =
            "\u{FEFF}{\"text\": \"a\"}\r\n\r\n  \n{\"text\": \"b\"}\n" + "{\"text\": \""
            + String(repeating: "c", count: 600_000) + "\"}"
        #expect(
            try samples(in: Array(text.utf8)) == [
                .text("a"), .text("b"), .text(String(repeating: "c", count: 600_000)),
            ])
        #expect(try samples(in: []) == [])
        #expect(try samples(in: Array("\n\r\n".utf8)) == [])
    }

    @Test func theFirstBadLineIsNamed() {
        let good = String(repeating: "{\"text\": \"a\"}\n\n", count: 8)
        let error = #expect(throws: DatasetError.self) {
            try samples(in: Array((good + "{\"foo\": 1, \"bar\": 2}\nnonsense").utf8))
        }
        #expect(
            error?.description
                == "line 17: needs one of messages | prompt+completion | instruction+output | text; found keys: foo, bar"
        )
    }

    @Test func aLineTooLongIsAnError() {
        let line = [UInt8](repeating: UInt8(ascii: " "), count: DatasetLine.maximumBytes + 2)
        #expect(throws: DatasetError(line: 2, reason: .lineTooLong(limitBytes: DatasetLine.maximumBytes))) {
            try samples(in: Array("\n".utf8) + line)
        }
    }

    @Test func aMissingFileIsAnError() {
        #expect(throws: DatasetError(line: nil, reason: .cannotRead(path: "/nowhere/x.jsonl", errorNumber: 2))) {
            _ = try DatasetReader.open(path: "/nowhere/x.jsonl")
        }
        #expect(throws: DatasetError(line: nil, reason: .cannotRead(path: "/", errorNumber: 21))) {
            var reader = try DatasetReader.open(path: "/")
            _ = try reader.next()
        }
    }

    /// Claim: no bytes make the reader trap, and every refusal says why.
    @Test(arguments: [UInt64(41), 42]) func hostileLinesOnlyThrow(_ seed: UInt64) throws {
        let pieces = [
            "{", "}", "[", "]", ":", ",", "\"", "\\", "\\u", "\\ud800", "\\udc00", "00e9", "text", "\"text\"",
            "\"messages\"", "\"prompt\"", "\"completion\"",
            "\"role\"", "\"content\"", "{\"text\":\"", "\"}", "{\"messages\":[{\"role\":\"user\",\"content\":\"",
            "\"}]}", "null", "true", "-1", "1e999",
            "1.5", "é", "\u{0}", " ", "\t",
        ]
        let valid =
            #"{"messages": [{"role": "user", "content": "a\u00e9\n"}, {"role": "assistant", "content": "b"}], "n": -1.5e3}"#
        var random = SeededText(seed: seed)
        var read = 0
        for round in 0..<30_000 {
            var line = round.isMultiple(of: 4) ? random.bytes(40) : Array(random.mixture(of: pieces, limit: 12).utf8)
            if round % 4 == 1 {
                line = Array(valid.utf8)
                line[Int.random(in: line.indices, using: &random)] = UInt8.random(in: .min ... .max, using: &random)
            }
            do throws(DatasetError.Reason) {
                _ = try DatasetLine.sample(line)
                read += 1
            } catch { #expect(!error.description.isEmpty) }
        }
        // A canary: lines that are never read test the first byte alone.
        #expect(read > 500, "seed \(seed)")
    }

    private func samples(in bytes: [UInt8]) throws -> [DatasetSample] {
        let path = FileManager.default.temporaryDirectory.path + "/edgetune-\(UUID().uuidString).jsonl"
        try Data(bytes).write(to: URL(filePath: path))
        defer { try? FileManager.default.removeItem(atPath: path) }
        var reader = try DatasetReader.open(path: path)
        var samples: [DatasetSample] = []
        while let sample = try reader.next() { samples.append(sample) }
        return samples
    }
}
