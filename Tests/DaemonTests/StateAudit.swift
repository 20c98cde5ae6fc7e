// What a state directory must look like after anything: nothing torn under a final name, and after a start in quiet nothing that
// nobody knows of.
import EdgeFormats
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation

/// Reads a state directory without a daemon.
enum StateAudit {
    /// Files under their final name that are not whole, with what is wrong with them.
    ///
    /// - Parameter adapters: jobs whose adapter must have all its files; of another it may be half removed.
    static func tornFiles(in state: String, adapters: [String]) throws -> [String] {
        var torn: [String] = []
        for path in try files(in: state) {
            let parts = path.split(separator: "/").map(String.init)
            let bytes = { Array(try Data(contentsOf: URL(filePath: state + "/" + path))) }
            let name = parts[parts.count - 1]
            // Staging names, and what is not complete and says so.
            if parts.contains(where: { $0.contains(".tmp-") || $0.hasPrefix(".") }) || name.contains(".part") { continue }
            do {
                switch parts[0] {
                case "blobs": try require("sha256-" + SHA256.hex(bytes().withUnsafeBytes(SHA256.hash)) == name, "is not what its name says")
                case "imports": _ = try GGUFFile(ByteRegion.copy(of: bytes()))
                case "jobs" where parts.count == 4 && parts[2] == "checkpoints": try requireSeal(bytes())
                case "jobs" where parts.count == 4 && parts[2] == "adapter": try requireWhole(bytes(), name)
                case "cache": try requireWhole(bytes(), name)
                default: break
                }
            } catch { torn.append("\(path): \(error)") }
        }
        for job in adapters {
            let adapter = "\(state)/jobs/\(job)/adapter"
            let missing = Set(["adapter_config.json", "adapter_model.safetensors.lz4", "training.json", "README.md", "SHA256SUMS"])
                .subtracting(try names(in: adapter))
            if !missing.isEmpty { torn.append("\(job)/adapter has no \(missing.sorted())") }
        }
        return torn
    }

    static func jobs(of store: JobStore) async throws -> [Job] {
        let listed = try Wire.decoder().decode(JobList.self, from: await store.listing(in: nil, limit: 1000) { _ in true })
        var jobs: [Job] = []
        for id in listed.jobs.map(\.id) {
            if let job = try await store.job(id) { jobs.append(job) }
        }
        return jobs
    }

    /// What nobody knows of, by the daemon's own lists.
    static func leftovers(_ client: StubbornClient) throws -> [String] {
        let state = client.files.state
        let jobs = Set(try client.get(JobList.self, Endpoint.jobs).jobs.map(\.id))
        let adapters = Set(try client.get(AdapterList.self, Endpoint.adapters).adapters.map(\.job))
        var found = try files(in: state).filter { $0.contains(".tmp-") || $0.contains(".part") || $0.contains("/.") }
        found += try names(in: state + "/jobs").filter { !jobs.contains($0) && !adapters.contains($0) }.map { "jobs/" + $0 }
        found += try names(in: state + "/logs").filter { !jobs.contains(String($0.dropLast(4))) }.map { "logs/" + $0 }
        found += try names(in: state + "/cache/exports").filter { !adapters.contains($0) }.map { "exports/" + $0 }
        found += try names(in: state + "/imports").map { "imports/" + $0 }
        // Those of the bystanders' model and data set.
        let blobs = try names(in: state + "/blobs")
        return found + (blobs.count > 2 ? blobs.map { "blobs/" + $0 } : [])
    }

    static func names(in directory: String) throws -> [String] { try FileManager.default.contentsOfDirectory(atPath: directory).sorted() }

    static func files(in state: String) throws -> [String] {
        try FileManager.default.subpathsOfDirectory(atPath: state).filter {
            var status = stat()
            return lstat(state + "/" + $0, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
        }
    }

    private static func require(_ condition: Bool, _ text: String) throws { if !condition { throw TestFailure(text) } }

    /// The checksum at the end of a checkpoint.
    private static func requireSeal(_ bytes: [UInt8]) throws {
        let end = bytes.count - SHA256.byteCount
        try require(
            end > 0 && bytes[..<end].withUnsafeBytes(SHA256.hash).elementsEqual(bytes[end...]),
            "\(bytes.count) bytes without their checksum")
    }

    static func requireWhole(_ bytes: [UInt8], _ name: String) throws {
        switch name {
        case "adapter_model.safetensors.lz4":
            _ = try SafetensorsFile(ByteRegion.copy(of: bytes.withUnsafeBytes { try LZ4Frame.decompress($0, limitBytes: 1 << 24) }))
        case "adapter_model.safetensors": _ = try SafetensorsFile(ByteRegion.copy(of: bytes))
        case _ where name.hasSuffix(".gguf"): _ = try GGUFFile(ByteRegion.copy(of: bytes))
        case _ where name.hasSuffix(".json"): _ = try JSONSerialization.jsonObject(with: Data(bytes))
        default: try require(!bytes.isEmpty, "is empty")
        }
    }
}
