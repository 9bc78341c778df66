"""The same job with Celery on Redis: FastAPI stores the user and asks for the task, a worker sends the mail.

    python -m tests.bench.celery_app                      the front
    celery -A tests.bench.celery_app worker …             the worker

Acked late, looked up before, noted after. What cannot be had: user and task are two writes, and a crash between the
two leaves a user without a mail.
"""

import hashlib
import os
import smtplib
import threading

import redis
import uvicorn
from celery import Celery
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, EmailStr, Field

from tests.bench.raw_loop import MAIL

_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

app = Celery("celery_app", broker=_URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
store = redis.Redis.from_url(_URL)


class NewUser(BaseModel):
    email: EmailStr
    name: str = Field(min_length=1, max_length=100)


class Registered(NewUser):
    id: str


front = FastAPI()


@front.post("/v1/users", status_code=201)
def register(user: NewUser) -> Registered:
    """Two writes: the user if there is none of that address, then the task."""
    user_id = hashlib.sha256(user.email.lower().encode()).hexdigest()[:26]
    if not store.set(f"user:{user_id}", user.model_dump_json(), nx=True):
        raise HTTPException(409, "taken")
    deliver.delay(user_id, user.email, user.name)
    return Registered(id=user_id, email=user.email, name=user.name)


_thread = threading.local()


@app.task(name="deliver", autoretry_for=(OSError, smtplib.SMTPException), retry_backoff=1, max_retries=None)
def deliver(user_id: str, email: str, name: str) -> None:
    """Looked up, sent, noted; acked when this returns."""
    if store.exists(f"sent:{user_id}"):
        return
    smtp = getattr(_thread, "smtp", None)
    if smtp is None:
        smtp = smtplib.SMTP("127.0.0.1", int(os.environ["SMTP_PORT"]))
    _thread.smtp = None
    smtp.sendmail("welcome@mailflow.local", [email], MAIL)
    _thread.smtp = smtp
    store.set(f"sent:{user_id}", "sent", nx=True)


if __name__ == "__main__":
    uvicorn.run(front, port=int(os.environ["HTTP_PORT"]), loop="uvloop", http="httptools", access_log=False)
