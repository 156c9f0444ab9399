{{/* The name of all objects. KubeRay adds six characters for a cluster, and eleven for a run. */}}
{{- define "safe-ray.name" -}}
{{- $name := .Values.fullnameOverride | default .Release.Name -}}
{{- $longest := ternary 36 47 (ne .Values.sweep.schedule "") -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "The name %q must begin with a letter and hold lower case letters, digits and hyphens: choose another release name, or set fullnameOverride." $name) -}}
{{- end -}}
{{- if gt (len $name) $longest -}}
{{- fail (printf "The name %q has %d characters, and KubeRay allows %d: choose another release name, or set fullnameOverride." $name (len $name) $longest) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "safe-ray.labels" -}}
app.kubernetes.io/name: safe-ray
app.kubernetes.io/instance: {{ include "safe-ray.name" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/*
What selects the pods of a part of the release; KubeRay keeps these labels, and the name of a
sweep's cluster is not known before it is there.
Takes a dict: root, part (sweep, cluster or serve).
*/}}
{{- define "safe-ray.selector" -}}
safe-ray/release: {{ include "safe-ray.name" .root }}
safe-ray/part: {{ .part }}
{{- end -}}

{{/* The parts that are there, as a JSON list. */}}
{{- define "safe-ray.parts" -}}
{{- $parts := list -}}
{{- if .Values.sweep.enabled -}}{{- $parts = append $parts "sweep" -}}{{- end -}}
{{- if .Values.cluster.enabled -}}{{- $parts = append $parts "cluster" -}}{{- end -}}
{{- if .Values.serve.enabled -}}{{- $parts = append $parts "serve" -}}{{- end -}}
{{- toJson $parts -}}
{{- end -}}

{{- define "safe-ray.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "safe-ray.claim" -}}
{{- .Values.storage.existingClaim | default (printf "%s-storage" (include "safe-ray.name" .)) -}}
{{- end -}}

{{- define "safe-ray.sweepName" -}}
{{- .Values.sweep.name | default (include "safe-ray.name" .) -}}
{{- end -}}

{{/* Whether nodes come and go: "true" or "". Kueue grants a fixed size, unless it is elastic. */}}
{{- define "safe-ray.autoscales" -}}
{{- if and .Values.autoscaling.enabled (or (not .Values.kueue.queue) .Values.kueue.elastic) -}}true{{- end -}}
{{- end -}}

{{/* MiB of a quantity such as 6Gi; the schema allows Mi and Gi. */}}
{{- define "safe-ray.mebibytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- ternary (mul $number 1024) $number (hasSuffix "Gi" .) -}}
{{- end -}}

{{/*
MiB that tasks of a node are offered: the container's memory without the object store, which lies in
/dev/shm and is counted against the same limit.
Takes a dict: name, memory, objectStore.
*/}}
{{- define "safe-ray.taskMebibytes" -}}
{{- $all := include "safe-ray.mebibytes" .memory | int64 -}}
{{- $store := include "safe-ray.mebibytes" .objectStore | int64 -}}
{{- if ge (mul $store 2) (int $all) -}}
{{- fail (printf "The object store of %s (%s) must be less than half of its memory (%s), which it is counted against: lower objectStore, or raise memory." .name .objectStore .memory) -}}
{{- end -}}
{{- sub $all $store -}}
{{- end -}}

{{/* The nodes that there may be, as cluster.ceiling has it. */}}
{{- define "safe-ray.ceiling" -}}
{{- $shapes := list -}}
{{- range .Values.workerGroups -}}
{{- if .maxReplicas -}}
{{- $memory := include "safe-ray.taskMebibytes" (dict "name" (printf "workerGroups %q" .name) "memory" .memory "objectStore" .objectStore) -}}
{{- $shapes = append $shapes (printf "{nodes: %d, cpus: %d, gpus: %d, memory: %sMiB}" (int .maxReplicas) (int .cpus) (int .gpus) $memory) -}}
{{- end -}}
{{- end -}}
{{- if not $shapes -}}
{{- fail "Every group of workerGroups has maxReplicas 0, so nothing could work: raise one." -}}
{{- end -}}
[{{ join ", " $shapes }}]
{{- end -}}

{{/* A word of a command line for sh, quoted where it must be. */}}
{{- define "safe-ray.quoted" -}}
{{- if regexMatch "^[A-Za-z0-9_@%+=:,./-]+$" . -}}
{{ . }}
{{- else -}}
'{{ . | replace "'" "'\\''" }}'
{{- end -}}
{{- end -}}

{{/*
The command of a sweep. The attempt sees to it that what is refused is not tried again.
*/}}
{{- define "safe-ray.entrypoint" -}}
{{- $words := list "python" "-m" "safe_ray.attempt" "python" "-m" "safe_ray.tune" -}}
{{- if .Values.sweep.schedule -}}
{{- /* The run's RayJob is named by the cluster that it makes, up to the last hyphen. */ -}}
{{- $words = append $words "sweep=\"${RAY_CLUSTER_NAME%-*}\"" -}}
{{- else -}}
{{- $words = append $words (include "safe-ray.quoted" (printf "sweep=%s" (include "safe-ray.sweepName" .))) -}}
{{- end -}}
{{- $words = append $words (include "safe-ray.quoted" (printf "storage=%s" .Values.storage.mountPath)) -}}
{{- $words = append $words (include "safe-ray.quoted" (printf "cluster.ceiling=%s" (include "safe-ray.ceiling" .))) -}}
{{- range .Values.sweep.arguments -}}
{{- if regexMatch "^(\\+{0,2}(sweep|storage|cluster\\.ceiling)=|~?sweep$)" . -}}
{{- fail (printf "sweep.arguments has %q, which the chart writes itself, from sweep.name, storage.mountPath and workerGroups: leave it out." .) -}}
{{- end -}}
{{- if has . (list "--restart" "--yes") -}}
{{- fail (printf "sweep.arguments has %q, with which every attempt would throw away what the last one finished: choose another sweep.name." .) -}}
{{- end -}}
{{- $words = append $words (include "safe-ray.quoted" .) -}}
{{- end -}}
{{- join " " $words -}}
{{- end -}}

{{/* The heads that are served, where nodes see them: a JSON list. */}}
{{- define "safe-ray.heads" -}}
{{- $heads := list -}}
{{- range .Values.serve.heads -}}
{{- $heads = append $heads (ternary . (printf "%s/%s" $.Values.storage.mountPath .) (or (hasPrefix "/" .) (hasPrefix "models:/" .))) -}}
{{- end -}}
{{- toJson $heads -}}
{{- end -}}
