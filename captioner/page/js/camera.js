// Takes a picture with the camera: in the page on a computer, with the camera app on a phone.

import { byId } from "./element.js";

export async function openCamera(take, openApp, complain) {
  const phone = matchMedia("(pointer: coarse)").matches;
  // Browsers lend the camera only to pages from this machine or over https.
  if (phone || !navigator.mediaDevices?.getUserMedia) return openApp();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    return complain("The camera cannot be used: allow it for this page, or choose a file.");
  }
  const stop = () => stream.getTracks().forEach((track) => track.stop());
  const dialog = byId("camera-dialog");
  if (dialog.open) return stop(); // the button was pressed twice
  const video = byId("video");
  video.srcObject = stream;
  byId("take").onclick = () => snapshot(video, (file) => { dialog.close(); take(file); });
  byId("cancel").onclick = () => dialog.close();
  dialog.onclose = stop;
  dialog.showModal();
}

function snapshot(video, done) {
  if (!video.videoWidth) return; // the first frame has not come yet
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => done(new File([blob], "camera.jpg", { type: blob.type })), "image/jpeg", 0.92);
}
