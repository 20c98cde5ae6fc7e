// Faults that once cost something, each at its one operation.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

@Suite(.serialized) struct FaultCaseTests {
    private static func start(_ directory: borrowing TemporaryDirectory) throws -> StubbornClient {
        let client = try StubbornClient(try FaultyFiles(in: directory.path))
        try KillTests.prepare(client.daemon)
        return client
    }

    /// One that is over in a moment.
    private static func submitShort(_ name: String, _ client: StubbornClient) throws -> String {
        var request = KillTests.request(name)
        request.maxSteps = 9
        return try client.post(Endpoint.jobs, request, accepting: [201]).decoded(JobStatus.self).id
    }

    @Test(arguments: [ENOSPC, EDQUOT])
    func aFullDiskOrQuotaPausesAJobWhichGoesOnWhenThereIsRoom(error: Int32) throws {
        let directory = try TemporaryDirectory()
        let client = try Self.start(directory)
        let whole = try Self.submitShort("whole", client)
        #expect(try client.wait(for: whole) { $0.state.isFinal }.state == .succeeded)
        client.files.arm(.fail(error), at: 2, only: "create jobs/")
        let job = try Self.submitShort("full", client)
        let paused = try client.wait(for: job) { $0.state == .paused || $0.state.isFinal }
        #expect(paused.state == .paused && paused.reason?.contains("free some space") == true, "\(paused)")
        _ = try client.call("POST", Endpoint.jobAction(job, .resume), accepting: [200])
        #expect(try client.wait(for: job) { $0.state.isFinal }.state == .succeeded)
        #expect(try KillTests.files(of: "full", client.daemon) == KillTests.files(of: "whole", client.daemon))
    }

    @Test func whatAJobIsStoredInStaysAfterAPowerCut() throws {
        let directory = try TemporaryDirectory()
        let client = try Self.start(directory)
        let job = try Self.submitShort("job", client)
        #expect(try client.wait(for: job) { $0.state.isFinal }.state == .succeeded)
        let operations = try client.files.operations()
        for (made, parent) in [("jobs/\(job)", "jobs"), ("jobs/\(job)/checkpoints", "jobs/\(job)")] {
            let index = try #require(operations.firstIndex { $0.kind == .mkdir && $0.path == made })
            #expect(operations[index + 1].kind == .sync && operations[index + 1].path == parent, "\(operations[index + 1])")
        }
    }

    private static let abc = Data("abc".utf8)
    private static let digestOfABC = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    private static func sendABC(_ client: StubbornClient) throws -> Int {
        let headers = [Header.uploadOffset: "0", Header.uploadLength: "3"]
        return try client.daemon.call("PATCH", Endpoint.blob(digestOfABC), headers: headers, body: abc).status
    }

    @Test func aBlobThatIsThereAlreadyHasItsNameSyncedBeforeTheClientIsTold() throws {
        let directory = try TemporaryDirectory()
        let client = try StubbornClient(try FaultyFiles(in: directory.path))
        // The first is the file's, the second comes after the rename.
        client.files.arm(.fail(EIO), at: 2, only: "sync blobs")
        #expect(try Self.sendABC(client) == 500)
        #expect(client.files.hasStruck)
        let before = client.files.sequence
        #expect(try Self.sendABC(client) == 200)
        let later = try client.files.operations().drop { $0.sequence <= before }
        #expect(later.first?.kind == .sync && later.first?.path == "blobs", "\(later.map { "\($0.kind) \($0.path)" })")
    }

    @Test func aBlobThatTheStoreCouldNotTakeIsNotCalledComplete() throws {
        let directory = try TemporaryDirectory()
        let client = try StubbornClient(try FaultyFiles(in: directory.path))
        client.files.arm(.fail(ENOSPC), at: 1, only: "write jobs.db-wal")
        #expect(try Self.sendABC(client) == 500)
        #expect(client.files.hasStruck)
        let held = try client.get(BlobStatus.self, Endpoint.blob(Self.digestOfABC))
        #expect(held == BlobStatus(digest: Self.digestOfABC, receivedBytes: 3, complete: false))
        #expect(try client.upload(Self.abc) == Self.digestOfABC)
        #expect(try client.get(BlobStatus.self, Endpoint.blob(Self.digestOfABC)).complete)
    }

    @Test func aStartRemovesWhatNobodyKnowsOf() throws {
        let directory = try TemporaryDirectory()
        let client = try Self.start(directory)
        let job = try Self.submitShort("job", client)
        #expect(try client.wait(for: job) { $0.state.isFinal }.state == .succeeded)
        _ = try client.call("GET", Endpoint.adapterFile("job", "adapter.gguf"), accepting: [200])
        let state = client.files.state
        let strays = ["jobs/j-000000000000/adapter", "cache/exports/j-000000000000", "cache/exports/\(job)/.17-adapter.gguf"]
        for stray in strays {
            try FileManager.default.createDirectory(atPath: "\(state)/\(stray)", withIntermediateDirectories: true)
        }
        try Data("x".utf8).write(to: URL(filePath: state + "/logs/j-000000000000.log"))
        try Data("x".utf8).write(to: URL(filePath: state + "/cache/calibrations/x.json.tmp-1-0"))
        let kept = try StateAudit.files(in: state + "/jobs/\(job)")
        try client.restart()
        #expect(try StateAudit.leftovers(client).isEmpty)
        #expect(try StateAudit.files(in: state + "/jobs/\(job)") == kept && !kept.isEmpty)
        #expect(try StateAudit.names(in: state + "/cache/exports/\(job)") == ["adapter.gguf"])
        #expect(try StateAudit.names(in: state + "/logs") == ["\(job).log"])
    }

    @Test func whatACutOffCheckpointLeftIsGoneAfterTheNextRun() throws {
        let directory = try TemporaryDirectory()
        let client = try Self.start(directory)
        client.files.arm(.kill(.ownProcess), at: 1, only: "rename jobs/")
        let job = try Self.submitShort("job", client)
        let done = try client.wait(for: job) { $0.state.isFinal }
        #expect(done.state == .succeeded && done.runs == 2 && client.files.hasStruck)
        let left = try StateAudit.files(in: client.files.state + "/jobs").filter { $0.contains(".tmp-") }
        #expect(left.isEmpty, "\(left)")
    }

    @Test func anImportThatIsStoredRunsWhateverFailsAfterwards() throws {
        let directory = try TemporaryDirectory()
        let client = try Self.start(directory)
        var request = KillTests.request("job")
        request.maxSteps = 9
        let job = try client.post(Endpoint.jobs, request, accepting: [201]).decoded(JobStatus.self).id
        #expect(try client.wait(for: job) { $0.state.isFinal }.state == .succeeded)
        let adapter = try KillTests.files(of: "job", client.daemon)
        client.files.arm(.fail(EIO), at: 1, only: "list imports")
        try OtherLife(adapter: adapter).run(client)
        #expect(client.files.hasStruck && client.restarts == 0)
    }
}
