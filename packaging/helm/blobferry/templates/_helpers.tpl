{{- define "blobferry.name" -}}
{{- if contains "blobferry" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-blobferry" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "blobferry.selector" -}}
app.kubernetes.io/name: blobferry
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "blobferry.labels" -}}
{{ include "blobferry.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "blobferry.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "blobferry.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "blobferry.image" -}}
{{- $repository := required "image.repository is not set: push the image to a registry of yours and name it" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* HTTPS where the config has a certificate for the listener. */}}
{{- define "blobferry.scheme" -}}
{{- if dig "daemon" "tls" nil .Values.config -}}HTTPS{{- else -}}HTTP{{- end -}}
{{- end -}}

{{/* The port of daemon.listen, which may not be loopback: the probes come from outside. */}}
{{- define "blobferry.port" -}}
{{- $listen := dig "daemon" "listen" "0.0.0.0:9464" .Values.config -}}
{{- if or (eq $listen "off") (hasPrefix "127." $listen) (hasPrefix "[::1]" $listen) -}}
{{- fail (printf "config.daemon.listen is %s, which the probes cannot reach: use 0.0.0.0:9464" $listen) -}}
{{- end -}}
{{- regexFind "[0-9]+$" $listen -}}
{{- end -}}
