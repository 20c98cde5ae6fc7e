// An export order: the artifact in the form that another program loads.
import EdgeJobs
import EdgeModel
import EdgeTrain

/// Writes the file and returns its path.
func export(_ order: WorkOrder.ExportOrder) throws -> String {
    switch order.format {
    case .safetensors:
        try AdapterArtifact.exportSafetensors(order.adapterDirectory, to: order.outputPath)
    case .gguf:
        let model = try BaseModel.open(path: order.modelPath)
        try AdapterArtifact.exportGGUF(
            order.adapterDirectory, architecture: model.spec.ggufArchitecture, to: order.outputPath
        ) { path in
            guard let id = try? ModuleID(path: path, in: model.spec) else { return nil }
            return (id.ggufName(model.spec), model.spec.ggufRowOrder(id.module))
        }
    }
    return order.outputPath
}
