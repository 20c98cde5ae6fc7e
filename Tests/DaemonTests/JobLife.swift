// What the tests of faults, crashes and power cuts do over and over: a life of a job, from the upload of its model to the last
// deletion, beside jobs that are done, failed, cancelled and paused and must stay so.
import EdgeTestSupport
import EdgeWire
import Foundation
import Testing

/// What happens to the job while it runs.
enum LifeCourse: String, CaseIterable { case runs, isPaused, isCancelled }

/// Jobs and an adapter that nothing is done with.
struct Bystanders {
    /// By name: the id and the state.
    let jobs: [String: (id: String, state: JobState)]
    let adapter: [Data]

    /// Makes them, by a client that nothing happens to.
    init(_ client: StubbornClient) throws {
        try KillTests.prepare(client.daemon)
        func submit(_ name: String) throws -> String {
            var request = KillTests.request(name)
            request.maxSteps = 20
            return try client.post(Endpoint.jobs, request, accepting: [201]).decoded(JobStatus.self).id
        }
        let kept = try submit("kept")
        guard try client.wait(for: kept, until: { $0.state.isFinal }).state == .succeeded else {
            throw TestFailure("the first job failed:\n\(client.daemon.log)")
        }
        adapter = try KillTests.files(of: "kept", client.daemon)
        // Its loss is soon not finite, and there is no best adapter to keep.
        var diverging = DivergenceTests.request("failed")
        (diverging.valSetSize, diverging.evalSteps) = (0, nil)
        let failed = try client.post(Endpoint.jobs, diverging, accepting: [201]).decoded(JobStatus.self).id
        guard try client.wait(for: failed, until: { $0.state.isFinal }).state == .failed else {
            throw TestFailure("the second job did not fail:\n\(client.daemon.log)")
        }
        var ids = ["kept": kept, "failed": failed]
        for (name, action, state) in [("cancelled", JobAction.cancel, JobState.cancelled), ("paused", .pause, .paused)] {
            let id = try submit(name)
            _ = try client.call("POST", Endpoint.jobAction(id, action), accepting: [200])
            _ = try client.wait(for: id) { $0.state == state }
            ids[name] = id
        }
        let states: [String: JobState] = ["kept": .succeeded, "failed": .failed, "cancelled": .cancelled, "paused": .paused]
        jobs = Dictionary(uniqueKeysWithValues: ids.map { ($0.key, ($0.value, states[$0.key] ?? .queued)) })
    }

    /// Nothing has happened to them.
    func check(_ client: StubbornClient, _ when: String) throws {
        for (name, job) in jobs {
            let now = try client.get(JobStatus.self, Endpoint.job(job.id))
            #expect(now.state == job.state, "\(when): \(name) is \(now.state)")
        }
        let files = try ["adapter_model.safetensors.lz4", "adapter_config.json"].map {
            try client.call("GET", Endpoint.adapterFile("kept", $0), accepting: [200]).body
        }
        #expect(files == adapter, "\(when): the adapter of before is another")
    }
}

struct JobLife {
    let number: Int
    let course: LifeCourse
    /// Also when its course does not say so.
    var mayBeCancelled = false
    /// Once it is submitted.
    var id: (String) -> Void = { _ in }
    /// Called with what the client has been told for sure, and what it is about to undo.
    var told: (Fact) throws -> Void = { _ in }

    enum Fact {
        case dataset(String), model(String), submitted(id: String, name: String), succeeded(id: String, name: String)
        case cancelled(id: String)
        case willDeleteJob(id: String), jobDeleted(id: String), willDeleteAdapter(String), adapterDeleted(String)
        case willDeleteDataset(String), datasetDeleted(String), willDeleteModel(String), modelDeleted(String)
    }

    var name: String { "life\(number)" }

    /// The tiny model with room behind its tensors: other bytes than those of the bystanders' model.
    static let model = Result { Data(try TestModel.goldens("tiny-llama.gguf") + [UInt8](repeating: 0, count: 64)) }
    static let dataset = Data(
        (0..<12).map { "{\"text\":\"line \($0) has \(String(repeating: "cd\($0 % 5) ", count: 3))\"}\n" }.joined().utf8)

    static func request(_ name: String) -> JobRequest {
        var request = KillTests.request(name)
        request.baseModel = "life"
        request.datasets = [DatasetReference(path: "life")]
        request.valSetSize = 2
        request.gradientAccumulationSteps = 2
        request.maxSteps = 12
        request.evalSteps = 6
        request.saveSteps = 4
        return request
    }

    private func submit(_ client: StubbornClient, _ name: String) throws -> String {
        let answer = try client.post(
            Endpoint.jobs, Self.request(name), headers: [Header.idempotencyKey: name], accepting: [200, 201])
        let id = try answer.decoded(JobStatus.self).id
        try told(.submitted(id: id, name: name))
        return id
    }

    /// - Returns: the adapter's files; nil when the job was cancelled.
    func run(_ client: StubbornClient) throws -> [Data]? {
        let model = try client.add([try Self.model.get()], to: Endpoint.models) { ImportRequest(name: "life", blob: $0[0]) }
        try told(.model("life"))
        #expect(model.status < 300)
        let dataset = try client.add([Self.dataset], to: Endpoint.datasets) { ImportRequest(name: "life", blob: $0[0]) }
        try told(.dataset("life"))
        #expect(dataset.status < 300)
        let id = try submit(client, name)
        self.id(id)
        // It waits behind the first.
        let second = try submit(client, "second\(number)")
        _ = try client.call("POST", Endpoint.jobAction(second, .cancel), accepting: [200, 409])
        try told(.cancelled(id: second))
        if course != .runs {
            _ = try client.wait(for: id) { $0.state != .queued }
            _ = try client.call("POST", Endpoint.jobAction(id, course == .isPaused ? .pause : .cancel), accepting: [200, 409])
        }
        let job = try finished(id, client)
        let files = try published(job, client)
        if job.state == .succeeded { try told(.succeeded(id: id, name: name)) } else { try told(.cancelled(id: id)) }
        try checkEvents(of: job, client)
        try delete(client, id, second)
        return files
    }

    /// Resumes it when it was paused, by the test or for want of space.
    private func finished(_ id: String, _ client: StubbornClient) throws -> JobStatus {
        while true {
            let job = try client.wait(for: id) { $0.state.isFinal || $0.state == .paused }
            if job.state.isFinal { return job }
            _ = try client.call("POST", Endpoint.jobAction(id, .resume), accepting: [200, 409])
        }
    }

    private func published(_ job: JobStatus, _ client: StubbornClient) throws -> [Data]? {
        let adapters = try client.get(AdapterList.self, Endpoint.adapters).adapters.filter { $0.name == name }
        guard job.state == .succeeded else {
            #expect(
                job.state == .cancelled && (mayBeCancelled || course == .isCancelled),
                "\(job)\n\(client.refusals.suffix(5))\n\(client.daemon.log.suffix(1500))")
            #expect(adapters.isEmpty)
            return nil
        }
        #expect(adapters.map(\.job) == [job.id])
        return try ["adapter_model.safetensors.lz4", "adapter_config.json"].map {
            try client.call("GET", Endpoint.adapterFile(name, $0), accepting: [200]).body
        }
    }

    /// One end, numbers without a gap, and one job of that name.
    private func checkEvents(of job: JobStatus, _ client: StubbornClient) throws {
        let text = try client.call("GET", Endpoint.jobEvents(job.id) + "?follow=0", accepting: [200]).text
        let events = try text.split(separator: "\n").map { try Wire.decoder().decode(JobEvent.self, from: Data($0.utf8)) }
        #expect(events.map(\.seq) == Array(1...max(1, events.count)))
        #expect(events.filter { if case .end = $0.event { true } else { false } }.map(\.event) == [.end(job.state)])
        let named = try client.get(JobList.self, Endpoint.jobs).jobs.filter { $0.name == name }
        #expect(named.map(\.id) == [job.id])
    }

    private func delete(_ client: StubbornClient, _ id: String, _ second: String) throws {
        // When the first was quick and its cancelling came late, the second has run.
        if try finished(second, client).state == .succeeded { try client.delete(Endpoint.adapter("second\(number)")) }
        for job in [id, second] {
            try told(.willDeleteJob(id: job))
            try client.delete(Endpoint.job(job))
            try told(.jobDeleted(id: job))
        }
        try told(.willDeleteAdapter(name))
        try client.delete(Endpoint.adapter(name))
        try told(.adapterDeleted(name))
        try told(.willDeleteDataset("life"))
        try client.delete(Endpoint.dataset("life"))
        try told(.datasetDeleted("life"))
        try told(.willDeleteModel("life"))
        try client.delete(Endpoint.model("life"))
        try told(.modelDeleted("life"))
        _ = try client.call("GET", Endpoint.job(id), accepting: [404])
        _ = try client.call("GET", Endpoint.adapter(name), accepting: [404])
        _ = try client.call("GET", Endpoint.model("life"), accepting: [404])
    }
}
