// A split GGUF through the real client, daemon and worker: what comes out trains as the file that was not split.
import EdgeFormats
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct SplitModelTests {
    /// The tiny model in two files, as gguf-split makes them: all metadata in the first.
    static func parts() throws -> [[UInt8]] {
        let whole = try TestModel.goldens("tiny-llama.gguf")
        let file = try GGUFFile(ByteRegion.copy(of: whole))
        let first = try #require(file.tensors.first)
        // Key-values lie between the four numbers of the header and the name of the first tensor.
        let mark = Data(little(UInt64(first.name.utf8.count)) + Array(first.name.utf8))
        let end = try #require(Data(whole).range(of: mark)).lowerBound
        let keyValues = Array(whole[24..<end])
        let keyCount = whole[16..<24].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        let half = file.tensors.count / 2
        return [Array(file.tensors[..<half]), Array(file.tensors[half...])].enumerated().map { number, tensors in
            var bytes = Array("GGUF".utf8) + little(UInt32(3)) + little(UInt64(tensors.count))
            bytes += little((number == 0 ? keyCount : 0) + 3) + (number == 0 ? keyValues : [])
            // Types: 2 is uint16, 5 is int32.
            for (key, kind, value) in [
                ("split.no", UInt32(2), little(UInt16(number))), ("split.count", 2, little(UInt16(2))),
                ("split.tensors.count", 5, little(Int32(file.tensors.count))),
            ] {
                bytes += little(UInt64(key.utf8.count)) + Array(key.utf8) + little(kind) + value
            }
            var data: [UInt8] = []
            for tensor in tensors {
                bytes += little(UInt64(tensor.name.utf8.count)) + Array(tensor.name.utf8)
                bytes += little(UInt32(tensor.shape.count)) + tensor.shape.reversed().flatMap { little(UInt64($0)) }
                bytes += little(tensor.type.rawValue) + little(UInt64(data.count))
                data += tensor.withBytes { Array($0) }
                while data.count % 32 != 0 { data.append(0) }
            }
            while bytes.count % 32 != 0 { bytes.append(0) }
            return bytes + data
        }
    }

    static func little(_ value: some FixedWidthInteger) -> [UInt8] { withUnsafeBytes(of: value.littleEndian) { Array($0) } }

    @Test func aSplitModelIsOneThatTrains() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        try KillTests.prepare(daemon)
        for (number, part) in try Self.parts().enumerated() {
            try Data(part).write(to: URL(filePath: "\(directory.path)/split-0000\(number + 1)-of-00002.gguf"))
        }
        let (code, text) = try AddTests.edgetune(
            ["models", "add", directory.path + "/split-00001-of-00002.gguf"], daemon)
        #expect(code == 0, "\(text)")
        let models = try PullTests.models(daemon)
        #expect(models.map(\.name) == ["split", "tiny"])
        #expect(models[0].model.parameters == models[1].model.parameters && models[0].files?.count == 2)
        var request = KillTests.request("on-split")
        request.baseModel = "split"
        request.maxSteps = 3
        let answer = try daemon.post(Endpoint.jobs, request)
        #expect(answer.status == 201, "\(answer.text)")
        let job = try answer.decoded(JobStatus.self).id
        #expect(try daemon.wait(for: job) { $0.state.isFinal }.state == .succeeded, "\(daemon.log)")
    }

    @Test func aMissingPartIsTheReasonAtOnce() throws {
        let directory = try TemporaryDirectory()
        let daemon = try DaemonProcess(in: directory.path)
        let part = try Self.parts()[0]
        let digest = "sha256:" + part.withUnsafeBytes { SHA256.hex(SHA256.hash($0)) }
        _ = try daemon.call(
            "PATCH", Endpoint.blob(digest),
            headers: [Header.uploadOffset: "0", Header.uploadLength: "\(part.count)"], body: Data(part))
        let file = ModelFile(name: "split-00001-of-00002.gguf", blob: digest)
        let answer = try daemon.post(Endpoint.models, ModelRequest(name: "m", files: [file]))
        #expect(answer.status == 422, "\(answer.text)")
        let problem = try answer.decoded(Problem.self)
        #expect(problem.kind == .unsupportedModel && problem.detail.contains("of 2 files"), "\(problem)")
        #expect(try ImportTests.comes(to: 0, "blobs", of: daemon))
    }
}
